"""Allocation of the KV cache's pages, with reference counts; host only."""

from __future__ import annotations

from collections.abc import Iterable

from jaxs1.model.kv_cache import PAGE


def pages_for(tokens: int) -> int:
    """Pages needed for a number of tokens."""
    return -(-tokens // PAGE)


class PageAllocator:
    """Free pages, and reference counts of the others.

    Args:
        num_pages: pages of the cache; page 0 is reserved
    """

    def __init__(self, num_pages: int):
        self.size = num_pages - 1
        self._free = list(range(num_pages - 1, 0, -1))
        self._holders: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        """Number of free pages."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Pages for one holder; the caller checks `num_free`."""
        pages = [self._free.pop() for _ in range(count)]
        self._holders.update(dict.fromkeys(pages, 1))
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Add a holder to allocated pages."""
        for page in pages:
            self._holders[page] += 1

    def free(self, pages: Iterable[int]) -> None:
        """Remove a holder; a page without holders is free again."""
        for page in pages:
            self._holders[page] -= 1
            if not self._holders[page]:
                del self._holders[page]
                self._free.append(page)
