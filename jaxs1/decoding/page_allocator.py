"""Allocation of the KV cache's pages, with reference counts and names; host only.

A page is held by sequences, or free, or cached: without a holder, but with a name under which the
next sequence may find it. Cached pages are given away too, the least recently used first, once no
other is free.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from jaxs1.model.kv_cache import PAGE


def pages_for(tokens: int) -> int:
    """Pages needed for a number of tokens."""
    return -(-tokens // PAGE)


class PageAllocator:
    """Free pages, reference counts of the others, and their names.

    Args:
        num_pages: pages of the cache; page 0 is reserved
    """

    def __init__(self, num_pages: int):
        self.size = num_pages - 1
        self._free = list(range(num_pages - 1, 0, -1))
        self._holders: dict[int, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._names: dict[int, bytes] = {}
        self._named: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Number of pages without a holder."""
        return len(self._free) + len(self._cached)

    def num_free_without(self, pages: Iterable[int]) -> int:
        """Number of pages without a holder once these have one."""
        return self.num_free - sum(page in self._cached for page in pages)

    def allocate(self, count: int) -> list[int]:
        """Pages for one holder; the caller checks `num_free`."""
        pages = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        self._holders.update(dict.fromkeys(pages, 1))
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Add a holder to pages that are held or cached."""
        for page in pages:
            if page in self._cached:
                del self._cached[page]
                self._holders[page] = 0
            self._holders[page] += 1

    def free(self, pages: Sequence[int]) -> None:
        """Remove a holder; a page without holders is free, or cached if it has a name."""
        for page in reversed(pages):  # the first pages of a sequence are the last to be evicted
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            del self._holders[page]
            if page in self._names:
                self._cached[page] = None
            else:
                self._free.append(page)

    def name(self, pages: Iterable[int], names: Iterable[bytes]) -> None:
        """Name pages whose content is complete; a name that another page has is left to it."""
        for page, name in zip(pages, names, strict=False):
            if page not in self._names and name not in self._named:
                self._names[page], self._named[name] = name, page

    def find(self, names: Iterable[bytes]) -> list[int]:
        """The pages of the longest known beginning."""
        found = []
        for name in names:
            if (page := self._named.get(name)) is None:
                break
            found.append(page)
        return found

    def forget(self) -> None:
        """Forget all names, whose content is no longer valid; cached pages are free then."""
        self._free += self._cached
        for names in (self._cached, self._names, self._named):
            names.clear()

    def _evict(self) -> int:
        page, _ = self._cached.popitem(last=False)
        del self._named[self._names.pop(page)]
        return page
