"""The text of one completion in pieces, as its tokens come."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxs1.decoding.budget import TokenKind
from jaxs1.decoding.detokenizer import Detokenizer
from jaxs1.decoding.outputs import Completion, StreamOutput, TokenLog


class Piece(NamedTuple):
    """A part of a streamed completion.

    Args:
        text: new text, empty in the last piece
        kind: "thinking", "wait" (inserted instead of an end of thinking), "close" (the end of
            thinking), "answer_prefix", "answer", or "end" for the last piece
        forced: whether budget forcing wrote the text, not the model
        completion: the finished completion, in the last piece only
    """

    text: str
    kind: str
    forced: bool = False
    completion: Completion | None = None


class Pieces:
    """Cuts the tokens of one completion into pieces of one kind each.

    The pieces of the thinking, Waits included, add up to the text of all its ids, and so do those
    of the answer, without its special tokens.

    Args:
        tokenizer: tokenizer of the model
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._texts: dict[int, Detokenizer] = {}
        self._kind, self._forced = TokenKind.THINKING, False

    def add(self, new: TokenLog) -> Iterator[Piece]:
        """The pieces of new tokens; an incomplete character at the end is held back."""
        end = 0
        for (kind, forced), run in itertools.groupby(zip(new.kinds, new.forced, strict=True)):
            begin, end = end, end + sum(1 for _ in run)
            if _channel(kind) != _channel(self._kind):
                yield from self.flush()
            self._kind, self._forced = TokenKind(kind), forced
            yield from self._piece(self._text(kind).add(new.tokens[begin:end]))

    def flush(self) -> Iterator[Piece]:
        """What is held back."""
        yield from self._piece(self._text(self._kind).flush())

    def of_output(self, output: StreamOutput) -> Iterator[Piece]:
        """The pieces of an output; all that is left if it is the last one."""
        yield from self.add(output.new_tokens)
        if output.completion is not None:
            yield from self.flush()

    def _text(self, kind: int) -> Detokenizer:
        channel = _channel(kind)
        if channel not in self._texts:
            skip = channel == TokenKind.ANSWER
            self._texts[channel] = Detokenizer(self._tokenizer, skip_special_tokens=skip)
        return self._texts[channel]

    def _piece(self, text: str) -> Iterator[Piece]:
        if text:
            yield Piece(text, self._kind.name.lower(), self._forced)


def _channel(kind: int) -> int:
    """Waits are a part of the thinking."""
    return TokenKind.THINKING if kind == TokenKind.WAIT else kind
