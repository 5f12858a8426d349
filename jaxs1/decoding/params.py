"""The parameters of a request: thinking budget, delimiters, sampling.

Everything is checked that can be checked without a tokenizer; `tokenized_thinking` turns the texts
into token ids.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from jaxs1.config import UserError
from jaxs1.data.chat import END_OF_TEXT
from jaxs1.data.delimiters import ANSWER, CLOSE, OPEN, THINK, check_template, choose_preset
from jaxs1.data.template import opening

Mode = Literal["strict", "s1_readme", "s1_harness", "off"]

#: Tokens that s1's harness reserves for the answer when it derives the budget itself.
AUTO_ANSWER = 100
#: Maximum number of entries of a logit bias, OpenAI's.
MAX_BIASES = 300


@dataclass(frozen=True)
class Delimiters:
    """Delimiters of thinking; null takes the preset's.

    Args:
        start: text that begins thinking; appended to the prompt
        ends: texts with which the model may end its thinking, in all spellings
        close: text inserted to end thinking; tokens of it that the model generated itself are kept
        stop: texts that end the answer, and thinking too; the tokenizer's EOS always does
        line_break: text inserted before `close` when thinking is cut short, unless the thinking
            already ends in a line break
    """

    start: str | None = None
    ends: tuple[str, ...] | None = None
    close: str | None = None
    stop: tuple[str, ...] | None = None
    line_break: str | None = None


STOP = ("<|im_end|>", END_OF_TEXT)
PRESETS = {
    "s1": Delimiters(THINK, ("<|im_start|>",), ANSWER, STOP, "\n"),
    # where </think> is several tokens, BPE merges its last one with the line breaks behind it
    "think_tags": Delimiters(OPEN, (CLOSE, f"{CLOSE}\n", f"{CLOSE}\n\n"), CLOSE, STOP, "\n"),
}


@dataclass(frozen=True)
class ThinkingParams:
    """Thinking budget and budget forcing.

    Args:
        max: maximum thinking tokens, inserted wait strings included; -1: limited only by the
            context, 0: no thinking, auto: derived from max_answer_tokens as s1_harness does
        min: minimum thinking tokens; the end of thinking is forbidden until then
        num_waits: number of times to suppress the end of thinking and insert a wait string
        wait_strings: strings inserted in place of the end of thinking, used in turn
        mode: rules of the budget: strict enforces max exactly over all rounds; s1_readme and
            s1_harness reproduce s1's own loops token by token (a budget that excludes wait strings;
            one budget per round); off disables thinking
        preset: named delimiters: s1, or think_tags (R1 distills, QwQ, Qwen3); auto takes what the
            model's folder declares, think_tags if tokenizer or chat template have </think>, and s1
            otherwise
        delimiters: texts that replace the preset's
        answer_prefix: text inserted after `close` when thinking is cut short, e.g.
            "\\nFinal Answer:"; null: that for s1_harness, none for the other modes
        max_answer_tokens: maximum answer tokens; -1: limited only by the context
        min_answer_tokens: tokens of the context reserved for the answer
    """

    max: int | Literal["auto"] = -1
    min: int = 0
    num_waits: int = 0
    wait_strings: tuple[str, ...] = ("Wait",)
    mode: Mode = "strict"
    preset: str = "auto"
    delimiters: Delimiters = field(default_factory=Delimiters)
    answer_prefix: str | None = None
    max_answer_tokens: int = -1
    min_answer_tokens: int = AUTO_ANSWER

    def __post_init__(self) -> None:
        """Check every field on its own, then against the others."""
        for name, value, known in (
            ("preset", self.preset, (*PRESETS, "auto")),
            ("mode", self.mode, get_args(Mode)),
        ):
            if value not in known:
                own = "; for your own texts set thinking.delimiters" if name == "preset" else ""
                raise UserError(
                    f"thinking.{name}={value!r}: unknown {name}; choose one of "
                    f"{', '.join(known)}{own}"
                )
        for name, minimum in _MINIMUM.items():
            value = getattr(self, name)
            if value != "auto" and value < minimum:
                unlimited = " (-1: no limit)" if minimum == -1 else ""
                raise UserError(
                    f"thinking.{name}={value}: must be {minimum} or more{unlimited}; raise it"
                )
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.max == "auto" and (self.mode != "s1_harness" or self.max_answer_tokens < 0):
            raise UserError(
                "thinking.max=auto: requires thinking.mode=s1_harness and "
                "thinking.max_answer_tokens; set both, or give a number"
            )
        if self.max_answer_tokens == 0:
            raise UserError(
                "thinking.max_answer_tokens=0: leaves no answer; set 1 or more, or -1 for no limit"
            )
        if self.max != "auto" and 0 <= self.max < self.min:
            raise UserError(
                f"thinking.min={self.min}: must not exceed thinking.max={self.max}; "
                "lower one or raise the other"
            )
        if self.num_waits and not self.wait_strings:
            raise UserError(
                f"thinking.num_waits={self.num_waits}: needs at least one string to insert; "
                "set thinking.wait_strings, e.g. '[\"Wait\"]'"
            )


_MINIMUM = {"max": -1, "min": 0, "num_waits": 0, "max_answer_tokens": -1, "min_answer_tokens": 1}


@dataclass(frozen=True)
class SamplingParams:
    """Sampling of the next token.

    Args:
        temperature: softmax temperature; 0 is greedy decoding
        answer_temperature: temperature of the answer; null: same as `temperature`
        top_k: keep only the k most likely tokens; 0 keeps all
        top_p: keep the smallest set of tokens whose probabilities sum to this
        min_p: keep only tokens at least this fraction as likely as the most likely one
        repetition_penalty: divisor of positive logits and factor of negative ones for tokens that
            have occurred in prompt or completion (Keskar et al. 2019); 1 disables it
        presence_penalty: subtracted from the logits of tokens that have occurred in the completion
        frequency_penalty: subtracted from them for every time that they have occurred
        logit_bias: token id to a number that is added to its logit; at most 300
        min_tokens: tokens after the prompt, thinking included, before the model may end its answer
    """

    temperature: float = 0.0
    answer_temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict, hash=False)
    min_tokens: int = 0

    def __post_init__(self) -> None:
        """Check the range of every field."""
        for name in ("temperature", "answer_temperature", "top_k", "min_tokens"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UserError(f"sampling.{name}={value}: must be 0 or more; raise it")
        if not 0 < self.top_p <= 1:
            raise UserError(
                f"sampling.top_p={self.top_p}: must be above 0, and at most 1 (no filter)"
            )
        if not 0 <= self.min_p <= 1:
            raise UserError(f"sampling.min_p={self.min_p}: must be between 0 (no filter) and 1")
        if not self.repetition_penalty > 0:
            raise UserError(
                f"sampling.repetition_penalty={self.repetition_penalty}: must be above 0; "
                "1 disables it"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(value := getattr(self, name)):
                raise UserError(f"sampling.{name}={value}: must be a finite number")
        if len(self.logit_bias) > MAX_BIASES:
            raise UserError(
                f"sampling.logit_bias: has {len(self.logit_bias)} entries; give at most "
                f"{MAX_BIASES}"
            )
        if wrong := [i for i, bias in self.logit_bias.items() if i < 0 or not math.isfinite(bias)]:
            raise UserError(
                f"sampling.logit_bias={wrong[0]}: must be a token id, with a finite number"
            )

    @property
    def is_adjusted(self) -> bool:
        """Whether logits depend on the completion, or are biased."""
        penalties = self.presence_penalty or self.frequency_penalty
        return bool(penalties or self.logit_bias or self.min_tokens)

    @property
    def is_greedy(self) -> bool:
        """Whether decoding is greedy, in thinking and in the answer: all samples would be equal."""
        return self.temperature == 0 and not self.answer_temperature


@dataclass(frozen=True)
class Request:
    """One prompt, to be completed `n` times.

    Args:
        prompt_ids: token ids, without the start of thinking, which the engine appends
        thinking: thinking budget, Waits, delimiters
        sampling: sampling parameters
        n: number of completions; they share the prompt's prefill
        seed: random seed; each of the n completions has its own random key
        max_tokens: maximum tokens after the prompt, thinking, close and answer; -1: no limit. A
            quarter of them, at most thinking.min_answer_tokens, is reserved for the answer
        cache_salt: requests with different salts share no cached prefix
        answer_start: text with which the controller begins every answer; a part of the answer
        tool_call: text with which the model calls a tool; in a thought it ends the thinking, and
            the answer begins with it. Only thinking.mode=strict observes it. Empty: none
        ignore_eos: whether the answer continues behind its end, up to its maximum length
        scores, prompt_scores: whether completions have the log-probabilities of their own tokens,
            and of the prompt's, without regard to sampling (`scoring.TokenScores`)
        logprobs: whether completions have the model's choices and their log-probabilities
    """

    prompt_ids: Sequence[int]
    thinking: ThinkingParams = field(default_factory=ThinkingParams)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    n: int = 1
    seed: int = 0
    max_tokens: int = -1
    cache_salt: str = ""
    answer_start: str = ""
    tool_call: str = ""
    ignore_eos: bool = False
    scores: bool = False
    prompt_scores: bool = False
    logprobs: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.n < 1:
            raise UserError(f"n={self.n}: must be at least 1")
        if self.max_tokens == 0 or self.max_tokens < -1:
            raise UserError(f"max_tokens={self.max_tokens}: must be at least 1, or -1 (no limit)")
        if 0 <= self.max_tokens < self.sampling.min_tokens:
            raise UserError(
                f"min_tokens={self.sampling.min_tokens}: exceeds max_tokens={self.max_tokens}; "
                "lower one or raise the other"
            )


def resolve_preset(thinking: ThinkingParams, tokenizer: Any) -> ThinkingParams:
    """The parameters with the preset of a tokenizer, "auto" resolved.

    Where the chat template opens thinking itself, the start of thinking is what it writes.

    Raises:
        UserError: the preset contradicts the chat template.
    """
    preset, own = choose_preset(thinking.preset, tokenizer), thinking.delimiters
    if thinking.mode != "off" and own.start is None:
        check_template(preset, tokenizer, "thinking.preset")
        opened = opening(tokenizer)
        if preset == "think_tags" and opened not in ("", OPEN):
            own = dataclasses.replace(own, start=opened)
    return dataclasses.replace(thinking, preset=preset, delimiters=own)


def delimiters_of(thinking: ThinkingParams) -> Delimiters:
    """The delimiters of the preset, with the user's own texts in their place.

    Args:
        thinking: parameters from `resolve_preset`
    """
    own = {name: value for name, value in vars(thinking.delimiters).items() if value is not None}
    return dataclasses.replace(PRESETS[thinking.preset], **own)
