"""Tiny conversions by the hundred: they do not wait for the disk."""

import pytest

from convert import transfer
from tests.convert.checkpoints import random_tensors, reduced, write_hf


@pytest.fixture(autouse=True)
def do_not_wait_for_the_disk(monkeypatch):
    monkeypatch.setattr(transfer, "sync", lambda path: None)


@pytest.fixture
def src(tmp_path):
    """Widths that every mesh divides."""
    config = reduced("qwen2.5-32b") | {"vocab_size": 64}
    return write_hf(tmp_path / "src", config, random_tensors(config, "bfloat16"))
