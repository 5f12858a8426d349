"""Test-time scaling methods, and the points of a sweep at which each of them is measured.

A sweep lists values for every method; each value becomes a `Point`: the `ThinkingParams` of its
requests, the instruction added to the question, and the bound that the method promises. Besides
budget forcing these are the other methods of the s1 paper (arXiv 2501.19393, section 3.2): token-,
step- and class-conditional instructions in the prompt, and rejection sampling. Majority voting
needs no point: it is computed from the n samples of any point.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jaxs1.config import UserError
from jaxs1.decoding.params import ThinkingParams

#: What s1's evaluation adds to a question; {value} is the value of the point.
INSTRUCTIONS = {
    "token_prompt": "Think for up to {value} tokens.",
    "step_prompt": "Think for up to {value} steps.",
}
#: The two instructions of class_prompt.
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
#: Method -> its name in tables and pictures.
METHODS = {
    "natural": "as configured",
    "budget": "budget forcing, maximum",
    "num_waits": "budget forcing, Waits",
    "token_prompt": "token-conditional",
    "step_prompt": "step-conditional",
    "class_prompt": "class-conditional",
    "rejection": "rejection sampling",
}


@dataclass(frozen=True)
class SweepConfig:
    """Test-time scaling methods and values to measure; without any, `thinking` is measured once.

    Args:
        budget: Thinking budgets to measure [tokens]; -1 is limited only by the context
        num_waits: Numbers of Waits to measure
        token_prompt: Values N of "Think for up to N tokens.", appended to the question
        step_prompt: Values N of "Think for up to N steps.", appended to the question
        class_prompt: Instructions to append, short or long; measured without one as well
        rejection: Longest accepted thinking [tokens]; longer samples are drawn again
        force: Enforce the numbers of token_prompt and step_prompt by budget forcing as well
        tokens_per_step: Budget of a step [tokens] when `force` turns steps into a budget
        tries: Maximum number of draws of rejection sampling before the sample counts as wrong
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
        """Reject values that cannot be measured."""
        least = {"budget": -1, "num_waits": 0, "token_prompt": 1, "step_prompt": 1, "rejection": 1}
        for name, bound in least.items():
            for value in getattr(self, name):
                if value < bound:
                    raise UserError(f"sweep.{name}={value}: must be {bound} or more; raise it")
        for name in METHODS:
            values = getattr(self, name, [])
            if len(set(values)) < len(values):
                raise UserError(f"sweep.{name}={values}: names a value twice; give each once")
        for name in ("tokens_per_step", "tries"):
            if getattr(self, name) < 1:
                raise UserError(f"sweep.{name}={getattr(self, name)}: must be 1 or more")


@dataclass(frozen=True)
class Bound:
    """The amount of thinking per question that a method promises: from `low` to `high`.

    Args:
        low: Least amount
        high: Largest amount; infinite without a limit
        unit: What is counted: thinking tokens, or steps (paragraphs of the thinking)
        relative: Whether low and high are multiples of the mean of the run without instruction
    """

    low: float = 0
    high: float = math.inf
    unit: Literal["tokens", "steps"] = "tokens"
    relative: bool = False

    @property
    def limits(self) -> bool:
        """Whether any amount is outside the bound."""
        return self.low > 0 or not math.isinf(self.high)

    def holds(self, amount: float) -> bool:
        """Whether an amount is within the bound."""
        return self.low <= amount <= self.high

    def times(self, usual: float) -> Bound:
        """The bound of a run, given the mean amount of the run without instruction."""
        if not self.relative:
            return self
        high = self.high if math.isinf(self.high) else self.high * usual
        return Bound(self.low * usual, high, self.unit)


@dataclass(frozen=True)
class Point:
    """One setting at which the model is measured.

    Args:
        method: A name in METHODS
        value: Value in the sweep; None for the run without instruction or sweep
        thinking: Thinking parameters of its requests
        instruction: Text appended to the question; empty for none
        bound: Amount of thinking that the method promises
        longest: Longest accepted thinking [tokens]; None accepts any
        draws: Maximum number of draws of a sample
    """

    method: str
    value: int | str | None
    thinking: ThinkingParams
    instruction: str = ""
    bound: Bound = Bound()
    longest: int | None = None
    draws: int = 1

    @property
    def key(self) -> str:
        """Identifies its requests within an evaluation; points with equal keys share samples.

        Rejection sampling shares its first draw with the point that accepts any length.
        """
        request = f"max={self.thinking.max} num_waits={self.thinking.num_waits}"
        return f"{request} prompt={self.instruction}" if self.instruction else request

    @property
    def is_natural(self) -> bool:
        """Whether the model alone decides when its thinking ends."""
        free = self.method != "budget" or self.value == -1
        plain = not self.instruction and self.longest is None
        return free and plain and self.thinking.num_waits == 0


def points_of(sweep: SweepConfig, thinking: ThinkingParams) -> list[Point]:
    """All points of a sweep, method by method; a method overrides fields of `thinking`.

    Raises:
        UserError: a value that contradicts `thinking`, such as a budget below its minimum.
    """
    return list(_points(sweep, thinking)) or [
        Point("natural", None, thinking, bound=_budget_bound(thinking))
    ]


def _points(sweep: SweepConfig, thinking: ThinkingParams) -> Iterator[Point]:
    for method, parameter in (("budget", "max"), ("num_waits", "num_waits")):
        for n in getattr(sweep, method):
            forced = dataclasses.replace(thinking, **{parameter: n})
            yield Point(method, n, forced, bound=_budget_bound(forced))
    for n in sweep.token_prompt:
        yield _instructed("token_prompt", n, n, sweep, thinking, Bound(high=n))
    for n in sweep.step_prompt:
        budget = n * sweep.tokens_per_step
        yield _instructed("step_prompt", n, budget, sweep, thinking, Bound(high=n, unit="steps"))
    if sweep.class_prompt:
        yield Point("class_prompt", None, thinking)
        bounds = {"short": Bound(high=1, relative=True), "long": Bound(low=1, relative=True)}
        for name in sweep.class_prompt:
            yield Point("class_prompt", name, thinking, CLASSES[name], bounds[name])
    for n in sweep.rejection:
        bound = Bound(high=n)
        yield Point("rejection", n, thinking, bound=bound, longest=n, draws=sweep.tries)


def with_instruction(question: str, point: Point) -> str:
    """The text that the model reads: the question as in s1, and the instruction of the point."""
    return f"{question}\n\n{point.instruction}" if point.instruction else question


def steps_in(thinking: str) -> int:
    """The number of paragraphs, which s1 takes for the steps of thinking."""
    return sum(bool(part.strip()) for part in thinking.split("\n\n"))


def uninstructed(points: Sequence[Point]) -> Point | None:
    """The class-conditional run without instruction, to which its bounds are relative."""
    return next((p for p in points if p.method == "class_prompt" and p.value is None), None)


def reference_of(points: Sequence[Point]) -> Point | None:
    """The first point with natural stopping, to which the others are compared; None if none has."""
    return next((point for point in points if point.is_natural), None)


def _instructed(
    method: str, value: int, budget: int, sweep: SweepConfig, thinking: ThinkingParams, bound: Bound
) -> Point:
    if sweep.force:
        thinking = dataclasses.replace(thinking, max=budget)
    return Point(method, value, thinking, INSTRUCTIONS[method].format(value=value), bound)


def _budget_bound(thinking: ThinkingParams) -> Bound:
    """The minimum and the maximum that budget forcing enforces."""
    limited = isinstance(thinking.max, int) and thinking.max >= 0
    return Bound(thinking.min, float(thinking.max) if limited else math.inf)
