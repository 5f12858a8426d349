"""What a user asks of thinking, in words: budgets, wait strings, and delimiters by name.

`ThinkingParams` holds the fields of a request; what no tokenizer and no context could make sense of is a
`UserError` of one line. `jaxs1.decoding.tokenized_thinking` turns it into token ids.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal, get_args

from jaxs1.config import UserError
from jaxs1.data.chat import ANSWER, END_OF_TEXT, THINK

Mode = Literal["strict", "s1_readme", "s1_harness", "off"]

#: s1's harness leaves this for the answer when it chooses the budget itself.
AUTO_ANSWER = 100


@dataclass(frozen=True)
class Delimiters:
    """The texts around thinking. Null takes the text of the preset.

    Args:
        start: begins thinking; written at the end of the prompt
        ends: what the model may end its thinking with, in all its spellings
        close: written to end thinking; tokens of it that the model wrote itself stay
        stops: end the answer, and thinking as well; the tokenizer's end of text always does
        line_break: comes before a close that cuts thinking short, unless the text ends in one
    """

    start: str | None = None
    ends: tuple[str, ...] | None = None
    close: str | None = None
    stops: tuple[str, ...] | None = None
    line_break: str | None = None


STOPS = ("<|im_end|>", END_OF_TEXT)
PRESETS = {
    "s1": Delimiters(THINK, ("<|im_start|>",), ANSWER, STOPS, "\n"),
    # where </think> is several tokens, what follows melts into the last of them
    "think_tags": Delimiters(
        "<think>\n", ("</think>", "</think>\n", "</think>\n\n"), "</think>", STOPS, "\n"
    ),
}


@dataclass(frozen=True)
class ThinkingParams:
    """How long a model thinks, and what it is told when it should stop or go on.

    Args:
        max: thinking budget [tokens]; -1: what the context holds, 0: close at once, auto: what
            s1_harness leaves over from max_answer_tokens
        min: thinking may not end before so many tokens
        num_waits: how many times an end of thinking is replaced by a wait string
        wait_strings: what is written instead of the end, used in turn
        mode: strict holds max over all rounds exactly; s1_readme and s1_harness repeat s1's own
            loops token by token (a budget that leaves Waits out; one per round); off does not think
        preset: delimiters by name: s1, or think_tags (R1 distills, QwQ, Qwen3)
        delimiters: texts that differ from the preset's
        answer_prefix: written behind a close that cuts thinking short, e.g. "\\nFinal Answer:"; null: that
            for s1_harness, nothing for the others
        max_answer_tokens: longest answer [tokens]; -1: what the context holds
        min_answer_tokens: kept free for the answer inside the context [tokens]
    """

    max: int | Literal["auto"] = -1
    min: int = 0
    num_waits: int = 0
    wait_strings: tuple[str, ...] = ("Wait",)
    mode: Mode = "strict"
    preset: str = "s1"
    delimiters: Delimiters = field(default_factory=Delimiters)
    answer_prefix: str | None = None
    max_answer_tokens: int = -1
    min_answer_tokens: int = AUTO_ANSWER

    def __post_init__(self) -> None:
        """Refuse what no tokenizer and no context could make sense of."""
        if self.preset not in PRESETS:
            raise UserError(
                f"thinking.preset={self.preset!r}: is unknown; give {' or '.join(PRESETS)}, "
                "and your own texts in thinking.delimiters"
            )
        if self.mode not in get_args(Mode):
            raise UserError(
                f"thinking.mode={self.mode!r}: is unknown; give {', '.join(get_args(Mode))}"
            )
        if self.max == "auto" and (self.mode != "s1_harness" or self.max_answer_tokens < 0):
            raise UserError(
                "thinking.max=auto: is what s1_harness leaves over from an answer's length; "
                "give thinking.mode s1_harness and thinking.max_answer_tokens N"
            )
        least = {
            "max": -1,
            "min": 0,
            "num_waits": 0,
            "max_answer_tokens": -1,
            "min_answer_tokens": 1,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if value != "auto" and value < bound:
                unlimited = " (-1: no limit)" if bound == -1 else ""
                raise UserError(
                    f"thinking.{name}={value}: must be {bound} or more{unlimited}; raise it"
                )
        if self.max_answer_tokens == 0:
            raise UserError("thinking.max_answer_tokens=0: leaves no answer; give 1 or more, or -1")
        if self.max != "auto" and 0 <= self.max < self.min:
            raise UserError(
                f"thinking.min={self.min}: must not be above thinking.max={self.max}; "
                "lower one or raise the other"
            )
        if self.num_waits and not self.wait_strings:
            raise UserError(
                f"thinking.num_waits={self.num_waits}: has nothing to write; "
                "give thinking.wait_strings '[\"Wait\"]'"
            )


def delimiters_of(thinking: ThinkingParams) -> Delimiters:
    """The preset, with the user's own texts in place of its."""
    own = {name: value for name, value in vars(thinking.delimiters).items() if value is not None}
    return dataclasses.replace(PRESETS[thinking.preset], **own)
