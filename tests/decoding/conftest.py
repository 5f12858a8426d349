"""Fixtures of the decoding tests."""

import functools

import pytest

from jaxs1.data.tokenizer import load_tokenizer

load = functools.cache(load_tokenizer)


@pytest.fixture
def qwen(shared_data):
    """Qwen2.5's tokenizer."""
    return load(str(shared_data / "qwen2.5-tokenizer"))
