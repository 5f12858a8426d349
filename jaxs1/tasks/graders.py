r"""Is an answer right, and do two answers say the same? One grader for curation and evaluation.

A `Grader` finds the final answer in a text and compares two of them; `GRADERS` has one per kind of
answer: `math` (an expression, by math-verify), `integer` (as AIME's, "073" is 73) and `letter`
(multiple choice). It runs in the main thread only: math-verify's time limits are signals.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxs1.config import UserError

#: What `is_correct` does; a part of the names of caches.
VERSION = "math-verify 2"
#: A longer text is no final answer but a degenerate one, over which math-verify takes seconds.
LONGEST = 400

_INTEGER = re.compile(r"([+-]?)0*(\d+)(?:\.0*)?")
_WRAPPING = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boxed)\s*\{|[$*`{}]|\\[,;! ]|\\[()\[\]]")
_CHOICE = re.compile(r"\(?([A-J])(?![A-Za-z0-9']| [a-z])")
_NAMED_CHOICE = re.compile(
    r"(?:answer|choice|option)(?: is|:)?:?\s*\(?([A-J])(?![A-Za-z0-9'])", re.I
)


@dataclass(frozen=True)
class Grader:
    """How answers of one kind are read and compared.

    Args:
        extract: a text -> its final answer, None where it has none
        same: whether two final answers say the same; for a vote, and the default of `right`
        right: whether a final answer is the gold one; null: where they are the same
    """

    extract: Callable[[str], str | None]
    same: Callable[[str, str], bool]
    right: Callable[[str, str], bool] | None = None

    def is_right(self, given: str | None, gold: str) -> bool:
        """Whether a final answer is the gold one; a missing one never is."""
        return given is not None and (self.right or self.same)(given, gold)


def final_answer(text: str) -> str | None:
    """What a text ends up with; None where it does not say.

    What follows the last "####" (GSM8K), else the last \\boxed{...} (MATH), else what follows the
    last "Answer:", else the text itself where it is one line.
    """
    if "####" in text:
        return text.rpartition("####")[2].strip() or None
    if (start := text.rfind("\\boxed{")) >= 0:
        depth, begin = 0, start + len("\\boxed")
        for end in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if not depth:
                return text[begin + 1 : end].strip() or None
    if match := re.findall(r"Answer:\s*(.+)", text):
        return match[-1].strip(" *") or None
    line = text.strip()
    return line if line and "\n" not in line else None


def is_correct(answer: str, solution: str) -> bool | None:
    """Whether an answer says what the solution says; None where the solution has no final answer.

    Raises:
        UserError: math-verify is not installed.
    """
    gold = final_answer(solution)
    return None if gold is None else GRADERS["math"].is_right(final_answer(answer), gold)


def same_expression(given: str, gold: str) -> bool:
    """Whether two mathematical answers are equal, by math-verify where their texts differ.

    Nothing but its own text equals an answer of more than LONGEST characters.

    Raises:
        UserError: math-verify is not installed.
    """
    given, gold = " ".join(given.split()), " ".join(gold.split())
    return given == gold or (len(given) <= LONGEST and _verify(gold, given))


def same_integer(given: str, gold: str) -> bool:
    """Whether two answers are the same integer, however padded and wrapped."""
    numbers = [integer(given), integer(gold)]
    return numbers[0] == numbers[1] if None not in numbers else same_expression(given, gold)


def integer(text: str) -> int | None:
    """The integer that a text is: "073", "$73$", "73.", "1,073"; None where it is not one."""
    plain = re.sub(r"(?<=\d)(?:,|\{,\})(?=\d{3}(?!\d))", "", text)
    match = _INTEGER.fullmatch(_WRAPPING.sub("", plain).strip())
    return int(match[1] + match[2]) if match else None


def choice(text: str) -> str | None:
    """The letter, A to J, that an answer picks: "B", "(b)", "**B) 12 eV**", "The answer is B."."""
    plain = _WRAPPING.sub("", final_answer(text) or "").strip()
    if re.fullmatch(r"\(?[a-j][).]?", plain):
        return plain.strip("().").upper()
    if match := _CHOICE.match(plain):
        return match[1]
    named = _NAMED_CHOICE.findall(_WRAPPING.sub("", text))
    return named[-1].upper() if named else None


@functools.lru_cache(maxsize=1 << 16)
def _verify(gold: str, given: str) -> bool:
    try:
        from math_verify import verify
    except ImportError:
        raise UserError("grading: needs the package math-verify; pip install math-verify") from None
    return bool(verify(_parsed(gold), _parsed(given)))


@functools.lru_cache(maxsize=1 << 16)
def _parsed(answer: str) -> Any:
    from math_verify import parse

    return parse(f"\\boxed{{{answer}}}")


#: Kind of answer -> its grader.
GRADERS = {
    "math": Grader(final_answer, same_expression),
    "integer": Grader(final_answer, same_integer),
    "letter": Grader(choice, str.__eq__),
}
