"""Pages are counted right: against sets of holders, over random allocations, shares and frees."""

import random

import pytest

from jaxs1.decoding.page_allocator import PageAllocator, pages_for
from jaxs1.model.kv_cache import NULL_PAGE, PAGE


def test_pages_for():
    assert [pages_for(n) for n in (0, 1, PAGE - 1, PAGE, PAGE + 1)] == [0, 1, 1, 1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_random_holders(seed):
    rng = random.Random(seed)
    allocator, holders = PageAllocator(20), []
    assert allocator.size == allocator.num_free == 19
    for _ in range(3000):
        action = rng.choice(["allocate", "share", "free"])
        if action == "allocate":
            count = rng.randrange(4)
            if count <= allocator.num_free:
                new = allocator.allocate(count)
                taken = {page for held in holders for page in held}
                assert len(set(new)) == count and not taken & set(new)
                holders.append(new)
        elif holders and action == "share":
            shared = [page for page in rng.choice(holders) if rng.random() < 0.5]
            allocator.share(shared)
            holders.append(shared)
        elif holders:
            allocator.free(holders.pop(rng.randrange(len(holders))))
        used = {page for held in holders for page in held}
        assert allocator.num_free == allocator.size - len(used)
        assert NULL_PAGE not in used and used <= set(range(20))
    for held in holders:
        allocator.free(held)
    assert allocator.num_free == allocator.size
    assert sorted(allocator.allocate(19)) == list(range(1, 20))


def test_an_unallocated_page_can_be_neither_shared_nor_freed():
    allocator = PageAllocator(4)
    (page,) = allocator.allocate(1)
    allocator.free([page])
    for wrong in (allocator.share, allocator.free):
        with pytest.raises(KeyError):
            wrong([page])
    with pytest.raises(KeyError):
        allocator.free([NULL_PAGE])
