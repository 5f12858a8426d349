"""What an engine returns: `Completion` at the end, a `StreamOutput` after every run of steps."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxs1.decoding.budget import Finish, TokenKind
from jaxs1.decoding.detokenizer import decoder_of
from jaxs1.decoding.params import Request, delimiters_of
from jaxs1.decoding.scoring import TokenScores, of_tokens
from jaxs1.decoding.tokenized_thinking import Ids, TokenizedThinking

#: Kinds of tokens that the controller may write, apart from Waits.
TEXTS = (TokenKind.CLOSE, TokenKind.ANSWER_PREFIX, TokenKind.ANSWER)


class Intervention(NamedTuple):
    """A text that the controller inserted.

    Args:
        position: position of its first forced token, counted from the first token after the prompt
        kind: wait, close, answer_prefix, or answer (a call, or the answer's beginning)
        string: index of the wait string; None for the other kinds
    """

    position: int
    kind: str
    string: int | None


@dataclass(frozen=True)
class Completion:
    """One completion of a prompt.

    Args:
        prompt_ids: prompt, with the start of thinking
        thinking_ids: tokens of the thinking, inserted wait strings included, without the close
        answer_ids: tokens of the answer, without close, answer prefix and stop
        thinking: text of the thinking
        answer: text of the answer
        interventions: texts that the controller inserted; positions count from the first token
            after the prompt
        thinking_ended_by: model, budget, context, max_tokens or client (`Engine.end_thinking`);
            none: max_tokens was too small to think; open: it never ended
        finish_reason: stop, length, or error
        usage: prompt_tokens, thinking_tokens, answer_tokens, forced_tokens (all tokens that the
            controller inserted), completion_tokens, and surplus_tokens (beyond the budget of
            s1_harness: generated, discarded, in no other number)
        settings: thinking and sampling parameters of the request
        seed: random seed of the request
        index: index among the request's n completions
        tokens: all token ids after the prompt, delimiters included
        forced: for each of `tokens`, whether the controller inserted it
        choices: for each of `tokens`, the id that the model chose; another one where the controller
            replaced it, budget.NONE (-1) where the controller wrote without asking. This and the
            next three are empty without `Request.logprobs`
        logprobs: log-probability of each choice under the distribution that it was drawn from
            (temperature, filters, forbidden ends); of greedy decoding at temperature 1; 0 without a
            choice
        gated: for each of `tokens`, whether the model was not allowed to end its thinking
        kinds: for each of `tokens`, its `budget.TokenKind`
        note: human-readable remark if a setting could not be honoured as requested
        error: human-readable reason if there is no completion
        scores: log-probabilities of `tokens`, if requested
        prompt_scores: those of the prompt's tokens but the first, if requested
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
    choices: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    gated: list[bool] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    note: str | None = None
    error: str | None = None
    scores: TokenScores | None = None
    prompt_scores: TokenScores | None = None

    def as_json(self) -> dict[str, Any]:
        """The completion as one JSON object; `forced` as the positions of forced tokens.

        What is empty without `Request.logprobs` is left out then.
        """
        record = dataclasses.asdict(self)
        if not self.logprobs:
            for name in ("choices", "logprobs", "gated", "kinds"):
                del record[name]
        record["interventions"] = [entry._asdict() for entry in self.interventions]
        for name, scores in (("scores", self.scores), ("prompt_scores", self.prompt_scores)):
            if scores is None:
                del record[name]
            else:
                record[name] = scores._asdict()
        record["forced"] = [i for i, forced in enumerate(self.forced) if forced]
        return record


@dataclass
class TokenLog:
    """Tokens generated after a prompt.

    Args:
        tokens: token ids
        forced: for each token, whether the controller inserted it
        kinds: for each token, its `budget.TokenKind`
        surplus: number of tokens that were discarded; not among `tokens`
        choices: as in `Completion`, like the next two
        logprobs: log-probability of each choice
        gated: whether the model was not allowed to end its thinking
        scores: for each token its `scoring.TokenScores`, with `Request.scores`
    """

    tokens: list[int] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    surplus: int = 0
    choices: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    gated: list[bool] = field(default_factory=list)
    scores: list[tuple[float, int, float]] = field(default_factory=list)

    def extend(self, new: TokenLog) -> None:
        """Append newer tokens."""
        self.tokens += new.tokens
        self.forced += new.forced
        self.kinds += new.kinds
        self.surplus += new.surplus
        self.choices += new.choices
        self.logprobs += new.logprobs
        self.gated += new.gated
        self.scores += new.scores

    @property
    def is_thinking(self) -> bool:
        """Whether the thinking has not ended, or not begun, yet."""
        return not self.kinds or self.kinds[-1] in (TokenKind.THINKING, TokenKind.WAIT)

    def of_kind(self, *kinds: int) -> list[int]:
        """The ids of the tokens of some kinds."""
        return [t for t, kind in zip(self.tokens, self.kinds, strict=True) if kind in kinds]


class StreamOutput(NamedTuple):
    """The newest tokens of one sequence.

    Args:
        request: number of the request
        sample: index among the request's n completions
        new_tokens: tokens generated since the previous output
        completion: set in the last output of a sequence
        thinking_ended_by: see `Completion`
        cached_tokens: tokens of the prompt that were not prefilled for this request
    """

    request: int
    sample: int
    new_tokens: TokenLog
    completion: Completion | None
    thinking_ended_by: str = "open"
    cached_tokens: int = 0


def complete(
    request: Request,
    index: int,
    thinking: TokenizedThinking,
    tokenizer: Any,
    prompt: list[int],
    log: TokenLog,
    *,
    ended_by: str,
    finish: int,
    note: str | None,
) -> Completion:
    """Make a completion from the tokens of a finished sequence.

    Args:
        request: request that it belongs to
        index: index among the request's n completions
        thinking: the request's thinking parameters in token ids
        tokenizer: tokenizer of the model
        prompt: prompt, with the start of thinking
        log: all tokens after the prompt
        ended_by: why thinking ended, see `Completion.thinking_ended_by`
        finish: why the sequence ended, from the last `budget.State`
        note: see `Completion`
    """
    thinking_ids = log.of_kind(TokenKind.THINKING, TokenKind.WAIT)
    answer_ids = log.of_kind(TokenKind.ANSWER)
    if finish == Finish.STOP:
        answer_ids = _without_stop(answer_ids, thinking.stops)
    visible_ids = answer_ids
    if request.thinking.mode == "s1_readme":
        # this mode leaves the close to the model: part of the answer's ids, not of its text
        text = delimiters_of(thinking.thinking).close
        close = tokenizer(text, add_special_tokens=False)["input_ids"]
        if answer_ids[: len(close)] == close:
            visible_ids = answer_ids[len(close) :]
    decode = decoder_of(tokenizer)
    return Completion(
        prompt_ids=prompt,
        thinking_ids=thinking_ids,
        answer_ids=answer_ids,
        thinking=decode(thinking_ids).strip(),
        answer=decode(visible_ids, skip_special_tokens=True).strip(),
        interventions=interventions(log.kinds, log.forced, [len(ids) for ids in thinking.waits]),
        thinking_ended_by=ended_by,
        finish_reason=Finish(finish).name.lower(),
        usage={
            "prompt_tokens": len(prompt),
            "thinking_tokens": len(thinking_ids),
            "answer_tokens": len(answer_ids),
            "forced_tokens": sum(log.forced),
            "completion_tokens": len(log.tokens),
            "surplus_tokens": log.surplus,
        },
        settings=settings_of(request, thinking.thinking.preset),
        seed=request.seed,
        index=index,
        tokens=log.tokens,
        forced=log.forced,
        choices=log.choices,
        logprobs=log.logprobs,
        gated=log.gated,
        kinds=log.kinds if request.logprobs else [],
        note=note,
        scores=of_tokens(log.scores) if request.scores else None,
    )


def interventions(
    kind_N: Sequence[int], forced_N: Sequence[bool], wait_lengths: Sequence[int]
) -> list[Intervention]:
    """The interventions in one sequence; runs on the host.

    Args:
        kind_N: `state.kind` after each step
        forced_N: `forced_B` of each step
        wait_lengths: tokens of each wait string
    """
    log: list[Intervention] = []
    waits = 0
    wait_ends = 0
    before: int = TokenKind.PAD
    for position, (kind, forced) in enumerate(zip(kind_N, forced_N, strict=True)):
        if kind == TokenKind.WAIT and (before != TokenKind.WAIT or position == wait_ends):
            string = waits % len(wait_lengths)
            wait_ends = position + wait_lengths[string]
            waits += 1
            log.append(Intervention(position, "wait", string))
        elif kind in TEXTS and forced and before != kind:
            log.append(Intervention(position, TokenKind(kind).name.lower(), None))
        # a close that the model began is logged where the controller takes over
        before = kind if forced else TokenKind.PAD
    return log


def answer_prefix_ids(completion: Completion) -> list[int]:
    """The last answer prefix that the controller wrote; empty if there is none."""
    starts = [entry.position for entry in completion.interventions if entry.kind == "answer_prefix"]
    if not starts:
        return []
    behind = zip(completion.tokens[starts[-1] :], completion.forced[starts[-1] :], strict=True)
    return [token for token, _ in itertools.takewhile(lambda x: x[1], behind)]


def failed(request: Request, index: int, error: str) -> Completion:
    """The completion of a request that cannot run."""
    return Completion(
        prompt_ids=list(request.prompt_ids),
        settings=settings_of(request),
        seed=request.seed,
        index=index,
        error=error,
    )


def settings_of(request: Request, preset: str | None = None) -> dict[str, Any]:
    """The settings that a completion keeps of its request; `preset` is what "auto" stood for."""
    thinking, sampling = vars(request.thinking), vars(request.sampling)
    delimiters = vars(request.thinking.delimiters)
    return {
        "thinking": {
            **thinking,
            "delimiters": dict(delimiters),
            "preset": preset or thinking["preset"],
        },
        "sampling": {**sampling, "logit_bias": dict(sampling["logit_bias"])},
    }


def _without_stop(ids: list[int], stops: Sequence[Ids]) -> list[int]:
    """The ids without the longest stop sequence at their end."""
    ending = [stop for stop in stops if tuple(ids[-len(stop) :]) == stop]
    return ids[: -max(map(len, ending))] if ending else ids
