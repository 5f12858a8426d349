"""Names of pages by what they hold, so that requests with the same beginning share them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from jaxs1.model.kv_cache import PAGE


def page_names(ids: Sequence[int], salt: str = "") -> list[bytes]:
    """Names of the full pages of a sequence.

    A name depends on all tokens up to the end of its page, since keys and values do.

    Args:
        ids: tokens from the first one of the prompt
        salt: sequences with different salts have different names
    """
    data = array("i", ids).tobytes()
    size = PAGE * array("i").itemsize
    names, name = [], hashlib.sha256(salt.encode()).digest()
    for end in range(size, len(data) + 1, size):
        name = hashlib.sha256(name + data[end - size : end]).digest()
        names.append(name)
    return names
