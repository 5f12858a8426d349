"""Parts of arrays, against masks that numpy makes from them."""

import numpy as np
import pytest

from convert.slices import bounds, intersect, relative, shape_of

SHAPE = (5, 7, 3)


def random_part(rng):
    ends = [np.sort(rng.choice(n + 1, 2, replace=False)) for n in SHAPE]
    return tuple(slice(int(a), int(b)) for a, b in ends)


def mask(part):
    held = np.zeros(SHAPE, bool)
    held[part] = True
    return held


def test_intersection_and_relative_index():
    rng = np.random.default_rng(0)
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    empty = 0
    for _ in range(300):
        a, b = random_part(rng), random_part(rng)
        both = intersect(a, b)
        expected = mask(a) & mask(b)
        if both is None:
            assert not expected.any()
            empty += 1
            continue
        assert (mask(both) == expected).all()
        assert shape_of(both) == values[both].shape
        for outer in (a, b):
            assert (values[outer][relative(both, outer)] == values[both]).all()
    assert 30 < empty < 270


@pytest.mark.parametrize(
    "index",
    [(slice(None), slice(2, None), slice(None, -1)), (slice(-3, None), slice(0, 7), slice(1, 2))],
)
def test_bounds_are_the_same_part_with_explicit_ends(index):
    explicit = bounds(index, SHAPE)
    assert all(0 <= s.start <= s.stop <= n for s, n in zip(explicit, SHAPE, strict=True))
    assert (mask(explicit) == mask(index)).all()
