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


@pytest.mark.parametrize("seed", range(3))
def test_named_pages_are_found_until_they_are_given_away(seed):
    """Against a plain model: a name is known from naming until its page has been evicted."""
    rng = random.Random(seed)
    allocator, holders, content = PageAllocator(12), [], {}
    found = evicted = 0
    for _ in range(4000):
        action = rng.choice(["allocate", "name", "find", "free", "free"])
        if action == "allocate" and (count := rng.randrange(4)) <= allocator.num_free:
            new = allocator.allocate(count)
            evicted += sum(content.pop(page, None) is not None for page in new)
            holders.append(new)
        elif action == "name" and holders and (held := rng.choice(holders)):
            page = rng.choice(held)
            name = b"%d" % rng.randrange(40)
            allocator.name([page], [name])
            if page not in content and name not in content.values():
                content[page] = name
        elif action == "find" and content:
            page = rng.choice(list(content))
            (same,) = allocator.find([content[page], b"unknown", content[page]])
            assert same == page
            used = {p for held in holders for p in held}
            free = allocator.size - len(used | {page})
            assert allocator.num_free_without([page]) == free
            allocator.share([page])
            holders.append([page])
            found += 1
        elif action == "free" and holders:
            allocator.free(holders.pop(rng.randrange(len(holders))))
        used = {page for held in holders for page in held}
        assert allocator.num_free == allocator.size - len(used)
    assert found > 200 and evicted > 100
    assert allocator.find([b"unknown"]) == []


def test_the_page_that_was_used_longest_ago_is_given_away_first():
    allocator = PageAllocator(5)
    pages = allocator.allocate(4)
    names = [b"a", b"b", b"c", b"d"]
    allocator.name(pages, names)
    allocator.free(pages)  # the beginning of a sequence is worth more than its end
    allocator.share(pages[3:])
    allocator.free(pages[3:])
    gone = []
    for _ in range(4):
        allocator.allocate(1)
        gone += [name for name in names if name not in gone and not allocator.find([name])]
    assert gone == [b"c", b"b", b"a", b"d"]


def test_forgotten_pages_are_free_and_unknown():
    allocator = PageAllocator(5)
    pages = allocator.allocate(3)
    allocator.name(pages, [b"a", b"b", b"c"])
    allocator.free(pages[:2])
    allocator.forget()
    assert allocator.num_free == 3 and not allocator.find([b"a"]) and not allocator.find([b"c"])
    allocator.free(pages[2:])
    assert sorted(allocator.allocate(4)) == [1, 2, 3, 4]
