"""What is asked of the engine and what comes back: `Request` and `Completion`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxs1.config import UserError
from jaxs1.decoding import budget
from jaxs1.decoding.budget import Intervention
from jaxs1.decoding.params import ThinkingParams, delimiters_of
from jaxs1.decoding.tokenized_thinking import Ids, TokenizedThinking

#: Names of `budget.OPEN` and so on, and of `budget.RUNNING` and so on.
ENDED_BY = ("open", "model", "budget", "context")
FINISH = ("running", "stop", "length")


@dataclass(frozen=True)
class SamplingParams:
    """How a token is drawn from the model's distribution.

    Args:
        temperature: 0 takes the likeliest token
        answer_temperature: temperature after thinking; null: the same
        top_k: draw from the k likeliest tokens; 0: from all
        top_p: draw from the fewest tokens whose probabilities reach this sum
        min_p: draw from tokens at least this share as likely as the likeliest
        repetition_penalty: divides positive and multiplies negative logits of tokens that have
            occurred in prompt or completion (Keskar et al. 2019); 1: none
    """

    temperature: float = 0.0
    answer_temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no distribution."""
        for name in ("temperature", "answer_temperature", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UserError(f"sampling.{name}={value}: must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampling.top_p={self.top_p}: must be above 0, and at most 1")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"sampling.min_p={self.min_p}: must be 0 to 1")
        if not self.repetition_penalty > 0:
            raise UserError(
                f"sampling.repetition_penalty={self.repetition_penalty}: must be above 0; 1 is none"
            )

    @property
    def is_greedy(self) -> bool:
        """Whether every token is the likeliest one, so that samples would be equal."""
        return self.temperature == 0 and not self.answer_temperature


@dataclass(frozen=True)
class Request:
    """One prompt, to be completed `n` times.

    Args:
        prompt_ids: token ids, without the start of thinking, which the engine appends
        thinking: budgets, Waits, delimiters
        sampling: how tokens are drawn
        n: completions, which share the prompt's prefill
        seed: of the draws; completion i of the n has randomness of its own
    """

    prompt_ids: Sequence[int]
    thinking: ThinkingParams = field(default_factory=ThinkingParams)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    n: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what asks for nothing."""
        if self.n < 1:
            raise UserError(f"n={self.n}: must be at least 1")


@dataclass(frozen=True)
class Completion:
    """What became of one sequence.

    Args:
        prompt_ids: the prompt with the start of thinking
        thinking_ids: tokens of the thinking, Waits included, without what closed it
        answer_ids: tokens of the answer, without close, answer_prefix and stop
        thinking: text of the thinking
        answer: text of the answer
        interventions: what the controller wrote; positions count from the first token
            behind the prompt
        thinking_ended_by: model, budget, context, or open where it never ended
        finish_reason: stop, length, or error
        usage: prompt_tokens, thinking_tokens, answer_tokens; forced_tokens counts every token that
            the controller wrote, wherever it stands
        settings: thinking and sampling of the request, to ask for the same again
        seed: of the request
        index: which of the request's n completions
        tokens: all ids behind the prompt as they stand in the context, delimiters included
        forced: for each of `tokens`, whether the controller wrote it
        note: what was done differently from what was asked, in words
        error: why there is no completion, in words
    """

    prompt_ids: list[int]
    thinking_ids: list[int] = field(default_factory=list)
    answer_ids: list[int] = field(default_factory=list)
    thinking: str = ""
    answer: str = ""
    interventions: list[Intervention] = field(default_factory=list)
    thinking_ended_by: str = "open"
    finish_reason: str = "error"
    usage: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    index: int = 0
    tokens: list[int] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    note: str | None = None
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The completion as one JSON object; `forced` as the positions of forced tokens."""
        record = dataclasses.asdict(self)
        record["interventions"] = [entry._asdict() for entry in self.interventions]
        record["forced"] = [i for i, forced in enumerate(self.forced) if forced]
        return record


@dataclass
class TokenLog:
    """All that was written behind a prompt; of each token, was it forced, and what kind it is."""

    tokens: list[int] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)

    def extend(self, new: TokenLog) -> None:
        """Append what was written next."""
        self.tokens += new.tokens
        self.forced += new.forced
        self.kinds += new.kinds

    def ids(self, *kinds: int) -> list[int]:
        """The tokens of some kinds."""
        return [t for t, kind in zip(self.tokens, self.kinds, strict=True) if kind in kinds]


def complete(
    request: Request,
    index: int,
    asked: TokenizedThinking,
    tokenizer: Any,
    prompt: list[int],
    written: TokenLog,
    *,
    ended_by: int,
    finish: int,
    note: str | None,
) -> Completion:
    """Take a finished sequence apart.

    Args:
        request, index: what it belongs to
        asked: the request in ids
        tokenizer: for the texts
        prompt: ids, with the start of thinking
        written: what followed
        ended_by, finish: of the last `budget.State`
        note: see `Completion`
    """
    thinking_ids = written.ids(budget.THINKING, budget.WAIT)
    answer_ids = written.ids(budget.ANSWERING)
    if finish == budget.STOP:
        answer_ids = _without_end(answer_ids, asked.stops)
    begun = answer_ids
    if request.thinking.mode == "s1_readme":
        # the end of thinking is left to the model: ids of the answer, but not of its text
        text = delimiters_of(request.thinking).close
        close = tokenizer(text, add_special_tokens=False)["input_ids"]
        begun = answer_ids[len(close) :] if answer_ids[: len(close)] == close else answer_ids
    return Completion(
        prompt_ids=prompt,
        thinking_ids=thinking_ids,
        answer_ids=answer_ids,
        thinking=tokenizer.decode(thinking_ids).strip(),
        answer=tokenizer.decode(begun, skip_special_tokens=True).strip(),
        interventions=budget.interventions(
            written.kinds, written.forced, [len(ids) for ids in asked.waits]
        ),
        thinking_ended_by=ENDED_BY[ended_by],
        finish_reason=FINISH[finish],
        usage={
            "prompt_tokens": len(prompt),
            "thinking_tokens": len(thinking_ids),
            "answer_tokens": len(answer_ids),
            "forced_tokens": sum(written.forced),
            "completion_tokens": len(written.tokens),
        },
        settings=settings_of(request),
        seed=request.seed,
        index=index,
        tokens=written.tokens,
        forced=written.forced,
        note=note,
    )


def failed(request: Request, index: int, error: str) -> Completion:
    """A completion that could not be."""
    return Completion(
        prompt_ids=list(request.prompt_ids),
        settings=settings_of(request),
        seed=request.seed,
        index=index,
        error=error,
    )


def settings_of(request: Request) -> dict[str, Any]:
    """What a completion keeps of its request."""
    return {
        "thinking": dataclasses.asdict(request.thinking),
        "sampling": dataclasses.asdict(request.sampling),
    }


def _without_end(ids: list[int], stops: Sequence[Ids]) -> list[int]:
    """The ids without the stop that they end with, the longest that fits."""
    ending = [stop for stop in stops if tuple(ids[-len(stop) :]) == stop]
    return ids[: -max(map(len, ending))] if ending else ids
