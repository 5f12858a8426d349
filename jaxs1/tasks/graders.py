r"""Graders of answers, shared by curation and evaluation.

A `Grader` finds the final answer in a text and compares two of them; `GRADERS` has one per kind of
answer: `math` (an expression), `integer` (as AIME's, "073" is 73) and `letter` (multiple choice).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from jaxs1.tasks.answers import final_answer
from jaxs1.tasks.expressions import number, same_expression

#: Version of `is_correct`; part of the names of caches.
VERSION = "math-verify 3"

_CHOICE = re.compile(r"(?:(?i:option|choice)\s+)?[(\[]?([A-J])(?![A-Za-z0-9']| [a-z])")
_WRAPPING = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boxed)\s*\{|[$*_`{}]|\\[,;! ]|\\[()\[\]]")
_NAMED_CHOICE = re.compile(
    r"(?:answer|choice|option)(?: is|:)?:?\s*\(?([A-J])(?![A-Za-z0-9'])", re.I
)


@dataclass(frozen=True)
class Grader:
    """Reads and compares answers of one kind.

    Args:
        extract: text -> its final answer, None if it has none
        same: whether two final answers are equal; used for votes
        right: whether a final answer equals the gold one; None: same as `same`
    """

    extract: Callable[[str], str | None]
    same: Callable[[str, str], bool]
    right: Callable[[str, str], bool] | None = None

    def is_right(self, given: str | None, gold: str) -> bool:
        """Whether a final answer is the gold one; a missing one never is."""
        return given is not None and (self.right or self.same)(given, gold)


def is_correct(answer: str, solution: str) -> bool | None:
    """Whether an answer equals the solution's; None if the solution has no final answer.

    Raises:
        UserError: math-verify is not installed.
    """
    gold = final_answer(solution)
    return None if gold is None else GRADERS["math"].is_right(final_answer(answer), gold)


def same_integer(given: str, gold: str) -> bool:
    """Whether two answers are the same integer, ignoring padding and wrapping."""
    numbers = [integer(given), integer(gold)]
    return numbers[0] == numbers[1] if None not in numbers else same_expression(given, gold)


def integer(text: str) -> int | None:
    """The integer that a text states: "073", "$73$", "73.", "1,073"; None if it is not one."""
    value = number(text)
    return int(value) if value is not None and value.denominator == 1 else None


def choice(text: str) -> str | None:
    """The letter, A to J, that an answer picks: "B", "(b)", "**B) 12 eV**", "The answer is B."."""
    plain = _WRAPPING.sub("", final_answer(text) or "").strip()
    if letter := re.fullmatch(r"[(\[]?([a-j])[).\]]?", plain):
        return letter[1].upper()
    if match := _CHOICE.match(plain):
        return match[1]
    named = _NAMED_CHOICE.findall(_WRAPPING.sub("", text))
    return named[-1].upper() if named else None


#: Kind of answer -> its grader.
GRADERS = {
    "math": Grader(final_answer, same_expression),
    "integer": Grader(final_answer, same_integer),
    "letter": Grader(choice, str.__eq__),
}
