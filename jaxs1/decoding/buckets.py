"""Sizes of the compiled programs: what is decoded or prefilled is rounded up to one of them.

An engine compiles a program when it first needs it. `powers_of_two` wastes little work. A server
cannot let streams wait for a compiler, so it takes the few sizes of `ladder` and compiles all of
them before it is ready.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxs1.decoding.sampling import SamplingFlags

#: Minimum width of a prefill batch [tokens]: shorter prompts share one compiled shape.
MIN_PREFILL = 16
#: Ratio of two neighbouring sizes of a ladder.
STEP = 4
#: Programs of a ladder for sampling: plain, and with all filters, penalties, biases and scores.
LADDER_FLAGS = (
    SamplingFlags(sampled=True, filtered=False, penalised=False),
    SamplingFlags(sampled=True, filtered=True, penalised=True, adjusted=True, scored=True),
)


class PrefillShape(NamedTuple):
    """Size of a compiled prefill.

    Args:
        rows: parts of prompts
        width: tokens of each part, padding included
        pages: pages of each sequence
        scored: whether it computes the log-probabilities of the prompts
    """

    rows: int
    width: int
    pages: int
    scored: bool = False

    @property
    def tokens(self) -> int:
        """Tokens that are computed, padding included."""
        return self.rows * self.width


@dataclass(frozen=True)
class Buckets:
    """Sizes, each in ascending order; the last one covers everything.

    Args:
        rows: sequences of a batch
        pages: pages of a sequence
        widths: tokens of a prefill batch's longest part
        flags: what a program for decode steps supports; None: exactly what a batch needs
    """

    rows: tuple[int, ...]
    pages: tuple[int, ...]
    widths: tuple[int, ...]
    flags: tuple[SamplingFlags, ...] | None = None

    def flags_for(self, needed: SamplingFlags) -> SamplingFlags:
        """The first program that supports what a batch needs, and its log-probabilities if any."""
        if self.flags is None:
            return needed
        without = needed._replace(logprobs=False)
        found = next(f for f in self.flags if all(x >= y for x, y in zip(f, without, strict=True)))
        return found._replace(logprobs=found.logprobs or needed.logprobs)

    @property
    def is_ladder(self) -> bool:
        """Whether few programs are compiled in advance: with scores, those of one prompt only."""
        return self.flags is not None

    def prefill_shape(self, rows: int, width: int, pages: int, *, scored: bool) -> PrefillShape:
        """The smallest compiled prefill for so many parts, of sequences of so many pages."""
        if scored and self.is_ladder:
            return PrefillShape(1, width, self.pages[-1], scored)
        return PrefillShape(size_for(self.rows, rows), width, size_for(self.pages, pages), scored)

    def prefill_shapes(self, tokens: int) -> Iterator[tuple[int, int]]:
        """Rows and width of all prefill batches of at most `tokens` tokens."""
        for width in self.widths:
            most = size_for(self.rows, max(1, tokens // width))
            yield from ((rows, width) for rows in self.rows if rows <= most)


def powers_of_two(*, rows: int, pages: int, tokens: int) -> Buckets:
    """All powers of two, up to the largest batch.

    Args:
        rows: maximum number of sequences
        pages: maximum pages of a sequence
        tokens: maximum width of a prefill batch
    """
    return Buckets(
        _sizes(1, rows, 2), _sizes(1, pages, 2), _sizes(min(MIN_PREFILL, tokens), tokens, 2)
    )


def ladder(*, rows: int, pages: int, tokens: int) -> Buckets:
    """Few sizes, each `STEP` times the one before. Arguments as in `powers_of_two`."""
    widths = _sizes(min(2 * MIN_PREFILL, tokens), tokens, STEP)
    return Buckets(_sizes(1, rows, STEP), _sizes(min(4, pages), pages, STEP), widths, LADDER_FLAGS)


def size_for(sizes: Sequence[int], n: int) -> int:
    """The smallest size that is large enough, or the largest one."""
    return sizes[min(bisect_left(sizes, n), len(sizes) - 1)]


def bucket(n: int) -> int:
    """The next power of two."""
    return 1 << max(0, n - 1).bit_length()


def _sizes(smallest: int, largest: int, ratio: int) -> tuple[int, ...]:
    sizes = [smallest]
    while sizes[-1] * ratio < largest:
        sizes.append(sizes[-1] * ratio)
    return (*sizes, largest) if largest > sizes[-1] else tuple(sizes)
