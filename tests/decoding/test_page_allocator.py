"""Pages are counted right: against sets of holders, over random takes, shares and releases."""

import random

import pytest

from jaxs1.decoding.page_allocator import PageAllocator, pages_for
from jaxs1.model.kv_cache import NULL_PAGE, PAGE


def test_pages_for():
    assert [pages_for(n) for n in (0, 1, PAGE - 1, PAGE, PAGE + 1)] == [0, 1, 1, 1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_random_holders(seed):
    rng = random.Random(seed)
    pool, holders = PageAllocator(20), []
    assert pool.size == pool.free == 19
    for _ in range(3000):
        action = rng.choice(["take", "share", "release"])
        if action == "take":
            count = rng.randrange(4)
            if count <= pool.free:
                new = pool.take(count)
                taken = {page for held in holders for page in held}
                assert len(set(new)) == count and not taken & set(new)
                holders.append(new)
        elif holders and action == "share":
            shared = [page for page in rng.choice(holders) if rng.random() < 0.5]
            pool.share(shared)
            holders.append(shared)
        elif holders:
            pool.release(holders.pop(rng.randrange(len(holders))))
        used = {page for held in holders for page in held}
        assert pool.free == pool.size - len(used)
        assert NULL_PAGE not in used and used <= set(range(20))
    for held in holders:
        pool.release(held)
    assert pool.free == pool.size
    assert sorted(pool.take(19)) == list(range(1, 20))


def test_what_nobody_holds_cannot_be_shared_or_released():
    pool = PageAllocator(4)
    (page,) = pool.take(1)
    pool.release([page])
    for wrong in (pool.share, pool.release):
        with pytest.raises(KeyError):
            wrong([page])
    with pytest.raises(KeyError):
        pool.release([NULL_PAGE])
