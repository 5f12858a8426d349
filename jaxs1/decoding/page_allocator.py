"""Which page of the KV cache belongs to whom: counted on the host, nothing else."""

from __future__ import annotations

from collections.abc import Iterable

from jaxs1.model.kv_cache import PAGE


def pages_for(tokens: int) -> int:
    """Pages that so many tokens fill."""
    return -(-tokens // PAGE)


class PageAllocator:
    """Free pages, and for the others how many sequences hold them.

    Args:
        num_pages: of the cache; page 0 is nobody's
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
        """Pages for one holder; there must be as many free ones."""
        taken = [self._free.pop() for _ in range(count)]
        self._holders.update(dict.fromkeys(taken, 1))
        return taken

    def share(self, pages: Iterable[int]) -> None:
        """One more holder of pages that are held already."""
        for page in pages:
            self._holders[page] += 1

    def free(self, pages: Iterable[int]) -> None:
        """One holder less; a page without one is free again."""
        for page in pages:
            self._holders[page] -= 1
            if not self._holders[page]:
                del self._holders[page]
                self._free.append(page)
