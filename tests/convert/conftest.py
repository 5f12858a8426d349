"""Tiny conversions by the hundred: they do not wait for the disk."""

import pytest

from convert import transfer


@pytest.fixture(autouse=True)
def do_not_wait_for_the_disk(monkeypatch):
    monkeypatch.setattr(transfer, "_sync", lambda path: None)
