"""The laptop demo's task, "Make T from a,b,c,d": questions, their solutions, grader, splits.

A question gives four distinct digits from 1..7 in some order and a target T > 0; an answer is
`x*y+z` or `x*y-z` with x, y, z three of the four and the value T. A candidate search goes through
24 expressions in a fixed order: the 6 pairs (x, y) by position, for each the two left-over
numbers, `+` then `-`.

The 35 sets of digits are split as *sets* (25 / 5 / 5), so a development or test question shows
digits that no training question shows together. What the demo trains on is in `puzzle_corpus`.
"""

import functools
import itertools
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

DIGITS = range(1, 8)
SPLIT_SIZES = {"train": 25, "dev": 5, "test": 5}
VALUES = range(-5, 48)  # contains all values of x*y+z and x*y-z over distinct digits

_NUMBER = r"(0|[1-9][0-9]{0,2})"
_EXPRESSION = re.compile(rf"{_NUMBER}\*{_NUMBER}([+-]){_NUMBER}")
_ANSWER_PREFIX = re.compile(r"^(Answer:\s*)?(Final Answer:)?")


@dataclass(frozen=True)
class Problem:
    """Four distinct digits, in the order in which the question lists them, and the target."""

    numbers: tuple[int, ...]
    target: int

    def __post_init__(self) -> None:
        """Reject anything but four distinct digits."""
        if len(self.numbers) != 4 or len(set(self.numbers) & set(DIGITS)) != 4:
            raise ValueError(f"numbers={self.numbers}: need four distinct digits from 1..7")

    @property
    def question(self) -> str:
        """The question as the model reads it."""
        return f"Make {self.target} from {','.join(map(str, self.numbers))}"

    def record(self) -> dict[str, Any]:
        """The question's JSON record; `from_record` inverts it."""
        return {
            "question": self.question,
            "numbers": list(self.numbers),
            "target": self.target,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Problem":
        """The problem of a record of dev.jsonl, test.jsonl or sft.jsonl."""
        return cls(tuple(record["numbers"]), record["target"])


class Candidate(NamedTuple):
    """One expression, x*y+z or x*y-z."""

    x: int
    y: int
    sign: str
    z: int

    @property
    def value(self) -> int:
        """What the expression evaluates to."""
        return self.x * self.y + (self.z if self.sign == "+" else -self.z)

    @property
    def expression(self) -> str:
        """The answer's form, `4*2-7`."""
        return f"{self.x}*{self.y}{self.sign}{self.z}"

    @property
    def steps(self) -> tuple[str, str]:
        """The calculation in two steps, `4*2=8` and `-7=1`."""
        return f"{self.x}*{self.y}={self.x * self.y}", f"{self.sign}{self.z}={self.value}"


@functools.cache
def candidates(numbers: tuple[int, ...]) -> tuple[Candidate, ...]:
    """The 24 candidates in the search's order; each line of the search takes the next four."""
    return tuple(
        Candidate(x, y, sign, z)
        for x, y in itertools.combinations(numbers, 2)
        for z in numbers
        if z not in (x, y)
        for sign in "+-"
    )


def search_lines(numbers: tuple[int, ...]) -> list[tuple[Candidate, ...]]:
    """The candidates by line: six pairs, four candidates each."""
    return [candidates(numbers)[i : i + 4] for i in range(0, 24, 4)]


def solve(problem: Problem) -> list[Candidate]:
    """All candidates that evaluate to the target, in the search's order."""
    return [c for c in candidates(problem.numbers) if c.value == problem.target]


def evaluate_expression(text: str) -> int | None:
    """The value of `x*y+z` or `x*y-z` in exactly this form, with numbers below 1000; else None."""
    match = _EXPRESSION.fullmatch(text)
    if match is None:
        return None
    x, y, z = (int(match[i]) for i in (1, 2, 4))
    return x * y + (z if match[3] == "+" else -z)


def is_correct(problem: Problem, answer_text: str) -> bool:
    """Whether the answer uses three of the four numbers, each at most once, and makes the target.

    `Final Answer:`, an `Answer:` before it, and white space around the expression are ignored.
    """
    text = answer_text.strip()
    text = _ANSWER_PREFIX.sub("", text, count=1).strip()
    if evaluate_expression(text) != problem.target:
        return False
    used = [int(number) for number in re.findall(r"\d+", text)]
    return len(set(used)) == 3 and set(used) <= set(problem.numbers)


@functools.cache
def split_sets() -> dict[str, tuple[tuple[int, ...], ...]]:
    """The sets of digits of `train`, `dev` and `test`: one split for all corpus seeds."""
    sets = list(itertools.combinations(DIGITS, 4))
    order = np.random.default_rng(0).permutation(len(sets))
    bounds = np.cumsum([0, *SPLIT_SIZES.values()])
    return {
        name: tuple(sorted(sets[i] for i in order[start:stop]))
        for name, (start, stop) in zip(SPLIT_SIZES, itertools.pairwise(bounds), strict=True)
    }


@functools.cache
def all_problems(split: str) -> tuple[Problem, ...]:
    """Every question of a split: its sets x 24 orders x the positive values that can be made."""
    return tuple(
        Problem(numbers, target)
        for digits in split_sets()[split]
        for numbers in itertools.permutations(digits)
        for target in sorted({c.value for c in candidates(numbers) if c.value > 0})
    )


def sample_problems(split: str, count: int, rng: np.random.Generator) -> list[Problem]:
    """`count` different questions of a split, uniformly; raises ValueError if there are fewer."""
    problems = all_problems(split)
    if count > len(problems):
        raise ValueError(f"count={count}: split {split} has {len(problems)} questions; give fewer")
    return [problems[i] for i in rng.permutation(len(problems))[:count]]
