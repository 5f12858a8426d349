"""Boxes: parts of arrays as tuples of slices, all with both ends given."""

from __future__ import annotations

from typing import Any


def bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> list[slice]:
    """Slices with both ends given."""
    return [slice(*s.indices(n)[:2]) for s, n in zip(index, shape, strict=True)]


def intersect(a: Any, b: Any) -> tuple[slice, ...] | None:
    """What two parts of an array share."""
    both = [slice(max(s.start, t.start), min(s.stop, t.stop)) for s, t in zip(a, b, strict=True)]
    return tuple(both) if all(s.start < s.stop for s in both) else None


def relative(inside: Any, whole: Any) -> tuple[slice, ...]:
    """Where a part of an array lies in another part that holds it."""
    return tuple(
        slice(s.start - t.start, s.stop - t.start) for s, t in zip(inside, whole, strict=True)
    )
