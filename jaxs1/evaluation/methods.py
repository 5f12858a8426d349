"""Ways of controlling how long a model thinks, and the points at which each is measured.

A sweep is a list of values for each way; a `Point` is one of them: the `ThinkingParams` of its requests,
what is added to the question, and the bound that the way promises to keep. Besides budget forcing
these are the others of the s1 paper (arXiv 2501.19393, section 3.2): instructions in the prompt
(token-, step- and class-conditional) and rejection sampling. Majority voting needs no point of its
own: it looks at the n samples of any.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from jaxs1.config import UserError
from jaxs1.decoding.params import ThinkingParams

#: What s1's evaluation adds to a question; {value} is the point's.
INSTRUCTIONS = {
    "token_prompt": "Think for up to {value} tokens.",
    "step_prompt": "Think for up to {value} steps.",
}
#: The two of class_prompt.
CLASSES = {
    "short": (
        "Answer after a short amount of thinking. Do not spend excessive time double-checking "
        "your work."
    ),
    "long": (
        "Answer after a long amount of thinking. If you feel like you are finished early, spend "
        "the extra time trying to double-check your work until you are absolutely sure that you "
        "have the correct answer."
    ),
}
#: Way -> its name in tables and pictures, and what its values are.
WAYS = {
    "natural": ("as asked", "setting"),
    "budget": ("budget forcing, maximum", "budget [tokens]"),
    "num_waits": ("budget forcing, Waits", "Waits"),
    "token_prompt": ("token-conditional", "tokens asked for"),
    "step_prompt": ("step-conditional", "steps asked for"),
    "class_prompt": ("class-conditional", "amount asked for"),
    "rejection": ("rejection sampling", "longest accepted [tokens]"),
}


@dataclass(frozen=True)
class SweepConfig:
    """At which settings the model is measured; with none given, once with `thinking` as it is.

    Args:
        budget: thinking budgets [tokens]; -1: what the context holds
        num_waits: numbers of Waits
        token_prompt: "Think for up to N tokens." behind the question
        step_prompt: "Think for up to N steps." behind the question
        class_prompt: short, long: an instruction behind the question; also measured without
        rejection: sample again until thinking is at most so long [tokens]
        force: keep the budgets of token_prompt and step_prompt by budget forcing, too
        tokens_per_step: of a step, where `force` turns steps into a budget
        tries: samples that rejection draws at most before the question counts as not answered
    """

    budget: list[int] = field(default_factory=list)
    num_waits: list[int] = field(default_factory=list)
    token_prompt: list[int] = field(default_factory=list)
    step_prompt: list[int] = field(default_factory=list)
    class_prompt: list[Literal["short", "long"]] = field(default_factory=list)
    rejection: list[int] = field(default_factory=list)
    force: bool = False
    tokens_per_step: int = 100
    tries: int = 32

    def __post_init__(self) -> None:
        """Refuse values that measure nothing."""
        least = {"num_waits": 0, "token_prompt": 1, "step_prompt": 1, "rejection": 1}
        for name, bound in {"budget": -1, **least}.items():
            for value in getattr(self, name):
                if value < bound:
                    raise UserError(f"sweep.{name}={value}: must be {bound} or more; raise it")
        for name in WAYS:
            values = getattr(self, name, [])
            if len(set(values)) < len(values):
                raise UserError(f"sweep.{name}={values}: names a value twice; give each once")
        for name in ("tokens_per_step", "tries"):
            if getattr(self, name) < 1:
                raise UserError(f"sweep.{name}={getattr(self, name)}: must be 1 or more")


@dataclass(frozen=True)
class Bound:
    """What a way promises of a run: at least `low` and at most `high` of something per question.

    Args:
        low, high: the least and the most
        unit: thinking tokens, or steps: paragraphs of the thinking
        relative: low and high are shares of the run without instruction
    """

    low: float = 0
    high: float = math.inf
    unit: Literal["tokens", "steps"] = "tokens"
    relative: bool = False


@dataclass(frozen=True)
class Point:
    """One setting at which the model is measured.

    Args:
        way: a name of WAYS
        value: of the sweep; None is without
        thinking: of its requests
        instruction: added to the question; empty for none
        bound: what the way promises
        longest: thinking that is longer is drawn again [tokens]; None takes any
        draws: at most so many
    """

    way: str
    value: int | str | None
    thinking: ThinkingParams
    instruction: str = ""
    bound: Bound = Bound()
    longest: int | None = None
    draws: int = 1

    @property
    def key(self) -> str:
        """Names what its requests ask, besides what all of the run share; equal keys share samples.

        What is drawn again (rejection) begins with the same samples as what is not.
        """
        asked = f"max={self.thinking.max} num_waits={self.thinking.num_waits}"
        return f"{asked} prompt={self.instruction}" if self.instruction else asked

    @property
    def label(self) -> str:
        """For people, e.g. `budget=512`."""
        return self.way if self.value is None else f"{self.way}={self.value}"


def points_of(sweep: SweepConfig, thinking: ThinkingParams) -> list[Point]:
    """All points of a sweep, way by way; `thinking` holds for what a way does not set.

    Raises:
        UserError: a value that `thinking` cannot go with, such as a budget below its minimum.
    """
    points = [
        Point("budget", n, budget := dataclasses.replace(thinking, max=n), bound=_of(budget))
        for n in sweep.budget
    ]
    for n in sweep.num_waits:
        waits = dataclasses.replace(thinking, num_waits=n)
        points.append(Point("num_waits", n, waits, bound=_of(waits)))
    for n in sweep.token_prompt:
        points.append(_instructed("token_prompt", n, n, sweep, thinking, Bound(high=n)))
    for n in sweep.step_prompt:
        bound = Bound(high=n, unit="steps")
        budget_of_steps = n * sweep.tokens_per_step
        points.append(_instructed("step_prompt", n, budget_of_steps, sweep, thinking, bound))
    if sweep.class_prompt:
        points.append(Point("class_prompt", None, thinking))
        bounds = {"short": Bound(high=1, relative=True), "long": Bound(low=1, relative=True)}
        for name in sweep.class_prompt:
            points.append(Point("class_prompt", name, thinking, CLASSES[name], bounds[name]))
    for n in sweep.rejection:
        points.append(
            Point("rejection", n, thinking, bound=Bound(high=n), longest=n, draws=sweep.tries)
        )
    return points or [Point("natural", None, thinking, bound=_of(thinking))]


def with_instruction(question: str, point: Point) -> str:
    """What the model reads: the plain question, as s1 asks it, and the point's instruction."""
    return f"{question}\n\n{point.instruction}" if point.instruction else question


def steps_in(thinking: str) -> int:
    """Paragraphs of a thinking: what s1 takes as its steps."""
    return sum(bool(part.strip()) for part in thinking.split("\n\n"))


def natural_of(points: Sequence[Point]) -> Point | None:
    """The class-conditional run without instruction, to which its bounds are relative."""
    return next((p for p in points if p.way == "class_prompt" and p.value is None), None)


def _instructed(
    way: str, value: int, budget: int, sweep: SweepConfig, thinking: ThinkingParams, bound: Bound
) -> Point:
    if sweep.force:
        thinking = dataclasses.replace(thinking, max=budget)
    return Point(way, value, thinking, INSTRUCTIONS[way].format(value=value), bound)


def _of(thinking: ThinkingParams) -> Bound:
    """The minimum and the maximum that budget forcing keeps."""
    limited = isinstance(thinking.max, int) and thinking.max >= 0
    return Bound(thinking.min, float(thinking.max) if limited else math.inf)
