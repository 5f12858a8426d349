"""Is an answer right? One function, so that evaluation's grader can take its place.

Mathematical answers are compared by math-verify, others letter by letter. It runs in the main
thread only: math-verify's time limits are signals.
"""

from __future__ import annotations

import re

from jaxs1.config import UserError

#: What `is_correct` does; a part of the names of caches.
VERSION = "math-verify 1"


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
    gold, given = final_answer(solution), final_answer(answer)
    if gold is None:
        return None
    if given is None:
        return False
    if " ".join(gold.split()) == " ".join(given.split()):
        return True
    try:
        from math_verify import parse, verify
    except ImportError:
        raise UserError(
            "features: grading needs the package math-verify; pip install math-verify"
        ) from None
    return bool(verify(*(parse(f"\\boxed{{{x}}}") for x in (gold, given))))
