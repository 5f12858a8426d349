"""Which answers become traces: each is checked, and every one that is dropped has a reason."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxs1.distillation.answers import Answer
from jaxs1.distillation.config import Keep
from jaxs1.tasks.graders import Grader

#: Reasons, in the order in which they are looked for -> what each means.
REASONS = {
    "repeated question": "an earlier row has the same question",
    "not requested": "the run ended before",
    "failed": "the teacher did not answer",
    "no thinking": "the answer came without any",
    "no answer": "there is thinking only",
    "cut off": "the answer did not end by itself",
    "no final answer": "the grader found none",
    "wrong": "the final answer is another one",
    "repeated trace": "an earlier sample is the same",
    "not selected": "right, but another sample of the question was kept",
}


@dataclass(frozen=True)
class Verdict:
    """What became of an answer.

    Args:
        reason: Why it is dropped, a key of `REASONS`; empty: it is kept
        detail: More about the reason
        correct: Whether it is right; None: there is nothing to compare it with
    """

    reason: str = ""
    detail: str = ""
    correct: bool | None = None


@dataclass(frozen=True)
class Sample:
    """One sample of a question.

    Args:
        number: Number of the sample; None where a question is dropped before any request
        answer: What the teacher wrote; None if there is nothing
        verdict: What became of it
    """

    number: int | None
    answer: Answer | None
    verdict: Verdict


def check(answer: Answer, gold: str, grader: Grader) -> Verdict:
    """Check one answer.

    Args:
        answer: What the teacher wrote
        gold: Right answer in the grader's form; empty if unknown
        grader: Grader of this kind of answers
    """
    given = grader.extract(answer.answer) if answer.answer else None
    correct = grader.is_right(given, gold) if gold else None
    if not answer.thinking:
        return Verdict("no thinking", "", correct)
    if answer.finish_reason != "stop":
        return Verdict("cut off", f"finish_reason={answer.finish_reason}", correct)
    if not answer.answer:
        return Verdict("no answer", "", correct)
    if gold and given is None:
        return Verdict("no final answer", "", correct)
    if correct is False:
        return Verdict("wrong", f"{given} instead of {gold}", correct)
    return Verdict("", "", correct)


def select(
    answers: Mapping[int, Answer], verdicts: Mapping[int, Verdict], keep: Keep, seed: str
) -> dict[int, Verdict]:
    """The verdicts of one question's samples once repeated and not selected ones are dropped.

    Args:
        answers: Number of the sample -> its answer
        verdicts: Number of the sample -> what `check` says of it
        keep: Traces to keep; lengths are those of the thinking [characters]
        seed: Random seed of keep=random
    """
    after = dict(verdicts)
    first: dict[tuple[str, str], int] = {}
    for sample in sorted(verdicts):
        if verdicts[sample].reason:
            continue
        text = answers[sample].thinking, answers[sample].answer
        if (earlier := first.setdefault(text, sample)) != sample:
            after[sample] = _dropped(verdicts[sample], "repeated trace", f"of sample {earlier}")
    chosen = _choose({s: answers[s] for s in first.values()}, keep, seed)
    for sample in first.values():
        if sample not in chosen:
            after[sample] = _dropped(verdicts[sample], "not selected", f"{keep}: {chosen[0]}")
    return after


def _choose(candidates: Mapping[int, Answer], keep: Keep, seed: str) -> Sequence[int]:
    """Samples to keep; the first of equally long ones."""
    samples = sorted(candidates)
    if keep == "all" or not samples:
        return samples
    if keep == "random":
        return [random.Random(seed).choice(samples)]
    sign = 1 if keep == "shortest" else -1
    return [min(samples, key=lambda s: (sign * len(candidates[s].thinking), s))]


def _dropped(verdict: Verdict, reason: str, detail: str) -> Verdict:
    return Verdict(reason, detail, verdict.correct)
