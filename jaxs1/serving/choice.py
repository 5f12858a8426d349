"""One choice of a reply: tokens in, pieces of text and a summary out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jaxs1.decoding.budget import TokenKind
from jaxs1.decoding.controls import SequenceLimits
from jaxs1.decoding.outputs import StreamOutput, TokenLog
from jaxs1.decoding.pieces import Pieces
from jaxs1.serving.answer_text import ChannelText
from jaxs1.serving.logprobs import ScoredToken
from jaxs1.serving.tool_calls import ToolCall, ToolCalls

#: Kinds of pieces -> the channel in which they are sent; the others are sent as details only.
CHANNELS = {"thinking": "reasoning", "wait": "reasoning", "answer": "content"}


@dataclass
class Delta:
    """New text of a choice.

    Args:
        channel: reasoning or content; close or answer_prefix with `details`
        text: the text
        forced: wait, close or answer_prefix if the controller wrote it, not the model
        call: call of a tool, in place of a text
    """

    channel: str
    text: str
    forced: str | None = None
    call: ToolCall | None = None


@dataclass
class Usage:
    """Tokens of a choice.

    Args:
        completion: tokens after the prompt
        thinking: those of the thinking, Waits included
        forced: those that the controller wrote
        waits: number of Waits
    """

    completion: int = 0
    thinking: int = 0
    forced: int = 0
    waits: int = 0

    def add(self, log: TokenLog, before: int) -> None:
        """Count new tokens behind one of kind `before`."""
        kinds, wait = log.kinds, int(TokenKind.WAIT)
        self.completion += len(kinds)
        self.forced += sum(log.forced)
        self.thinking += kinds.count(TokenKind.THINKING) + kinds.count(wait)
        if wait in kinds:
            self.waits += sum(x != wait == y for x, y in itertools.pairwise([before, *kinds]))


@dataclass
class Choice:
    """One choice while it is generated.

    Args:
        index: its index in the reply
        tokenizer: tokenizer of the model
        limits: limits of the sequence
        mode: mode of its thinking
        stops: texts that end the answer
        strip: whether blanks at the ends of thinking and answer are dropped
        details: whether the texts that end the thinking are sent too
        skipped: ids that are dropped where the answer begins with them
        tools: names of the tools that the answer may call
        parallel_calls: whether it may call more than one
        forced_call: name of the tool that it must call
    """

    index: int
    tokenizer: Any
    limits: SequenceLimits
    mode: str
    stops: tuple[str, ...] = ()
    strip: bool = True
    details: bool = False
    skipped: tuple[int, ...] = ()
    tools: tuple[str, ...] = ()
    parallel_calls: bool = True
    forced_call: str | None = None
    usage: Usage = field(default_factory=Usage)
    thinking_ended_by: str = "open"
    finish_reason: str | None = None
    stop_reason: str | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        """Begin with no text."""
        self._pieces = Pieces(self.tokenizer)
        self._texts = {
            "reasoning": ChannelText(strip=self.strip),
            "content": ChannelText(self.stops, strip=self.strip),
        }
        self._calls = ToolCalls(self.tools, self.forced_call) if self.tools else None
        self.has_called = False
        #: Tokens so far, if they have scores.
        self.scored: list[ScoredToken] = []
        self._kind: int = TokenKind.PAD
        self._answer: list[int] | None = [] if self.skipped else None

    @property
    def done(self) -> bool:
        """Whether the choice is complete."""
        return self.finish_reason is not None or self.error is not None

    def add(self, output: StreamOutput) -> Iterator[Delta]:
        """The pieces of an output, in order; nothing once the choice is complete."""
        self.thinking_ended_by = output.thinking_ended_by
        for run in self._runs(output.new_tokens):
            self.usage.add(run, self._kind)
            if run.scores:
                columns = (run.tokens, run.kinds, run.scores)
                self.scored += map(ScoredToken, *columns)
            self._kind = run.kinds[-1]
            yield from self._deltas(self._pieces.add(self._without_skipped(run)))
            if self.has_called and not self.parallel_calls:
                self.finish_reason = "tool_calls"
                return
            if stop := self._texts["content"].stopped_by:
                yield from self._end_of_calls()
                self.finish_reason, self.stop_reason = "stop", stop
                return
        if output.completion is not None:
            yield from self._finish(output)

    def summary(self, note: str | None = None) -> dict[str, Any]:
        """What was done about the thinking."""
        ended_by = "none" if self.mode == "off" else self.thinking_ended_by
        return {
            "budget": self.limits.budget,
            "tokens": self.usage.thinking,
            "waits": self.usage.waits,
            "forced_tokens": self.usage.forced,
            "ended_by": ended_by,
            "note": note,
        }

    def _runs(self, log: TokenLog) -> Iterator[TokenLog]:
        """Runs of tokens after which to look for a stop: one by one in an answer with stops."""
        if not log.tokens:
            return
        if not self.stops:
            yield log
            return
        columns = (log.tokens, log.forced, log.kinds)
        for i, (token, forced, kind) in enumerate(zip(*columns, strict=True)):
            yield TokenLog([token], [forced], [kind], scores=log.scores[i : i + 1])

    def _without_skipped(self, log: TokenLog) -> TokenLog:
        """Hold the answer back until it is clear whether it begins with `skipped`."""
        if self._answer is None or TokenKind.ANSWER not in log.kinds:
            return log
        first = log.kinds.index(TokenKind.ANSWER) if not self._answer else 0
        self._answer += log.tokens[first:]
        before = TokenLog(log.tokens[:first], log.forced[:first], log.kinds[:first])
        size = min(len(self._answer), len(self.skipped))
        begins = tuple(self._answer[:size]) == self.skipped[:size]
        if begins and size < len(self.skipped):
            return before
        rest = self._answer[size:] if begins else self._answer
        self._answer = None
        kinds = [int(TokenKind.ANSWER)] * len(rest)
        before.extend(TokenLog(rest, [False] * len(rest), kinds))
        return before

    def _finish(self, output: StreamOutput) -> Iterator[Delta]:
        completion = output.completion
        assert completion is not None
        if completion.error is not None:
            self.error = completion.error
            return
        if self._answer:  # only the beginning of what is skipped
            kinds = [int(TokenKind.ANSWER)] * len(self._answer)
            rest = TokenLog(self._answer, [False] * len(self._answer), kinds)
            yield from self._deltas(self._pieces.add(rest))
        yield from self._deltas(self._pieces.flush())
        for channel, text in self._texts.items():
            yield from self._channel(channel, text.flush(), None)
        yield from self._end_of_calls()
        stop = self._texts["content"].stopped_by
        self.finish_reason, self.stop_reason = "stop" if stop else completion.finish_reason, stop
        if self.has_called and self.finish_reason == "stop":
            self.finish_reason = "tool_calls"

    def _deltas(self, pieces: Iterator[Any]) -> Iterator[Delta]:
        for piece in pieces:
            forced = piece.kind if piece.forced else None
            channel = CHANNELS.get(piece.kind)
            if channel is None:
                if self.details:
                    yield Delta(piece.kind, piece.text, forced)
            else:
                yield from self._channel(channel, self._texts[channel].add(piece.text), forced)

    def _channel(self, channel: str, text: str, forced: str | None) -> Iterator[Delta]:
        """Text of a channel; calls of tools are taken out of the answer."""
        if channel == "content" and self._calls is not None:
            yield from self._called(self._calls.add(text))
        elif text:
            yield Delta(channel, text, forced)

    def _end_of_calls(self) -> Iterator[Delta]:
        if self._calls is not None:
            yield from self._called(self._calls.flush())

    def _called(self, parts: Iterator[str | ToolCall]) -> Iterator[Delta]:
        for part in parts:
            if isinstance(part, str):
                yield Delta("content", part)
            elif self.parallel_calls or not self.has_called:
                self.has_called = True
                yield Delta("content", "", call=part)
