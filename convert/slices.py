"""Parts of arrays as tuples of slices, one per axis, each with explicit start and stop."""

from __future__ import annotations

Slices = tuple[slice, ...]


def bounds(index: Slices, shape: tuple[int, ...]) -> Slices:
    """An index of an array of this shape, with explicit start and stop on every axis."""
    return tuple(slice(*s.indices(n)[:2]) for s, n in zip(index, shape, strict=True))


def shape_of(part: Slices) -> tuple[int, ...]:
    """Shape of a part."""
    return tuple(s.stop - s.start for s in part)


def intersect(a: Slices, b: Slices) -> Slices | None:
    """Intersection of two parts of an array; None where it is empty."""
    both = tuple(
        slice(max(s.start, t.start), min(s.stop, t.stop)) for s, t in zip(a, b, strict=True)
    )
    return both if all(s.start < s.stop for s in both) else None


def relative(inner: Slices, outer: Slices) -> Slices:
    """The part `inner` as an index into the part `outer`, which contains it."""
    return tuple(
        slice(s.start - t.start, s.stop - t.start) for s, t in zip(inner, outer, strict=True)
    )
