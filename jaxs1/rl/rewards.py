"""A completion and its question to a reward: 1 if the answer is right, otherwise 0."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from jaxs1.config import UserError, one_line
from jaxs1.decoding.outputs import Completion, answer_prefix_ids
from jaxs1.tasks.benchmarks import Question
from jaxs1.tasks.graders import Grader

Outcome = Literal["right", "wrong", "no_answer"]


class Graded(NamedTuple):
    """A completion with its reward.

    Args:
        completion: what the model and the controller wrote
        reward: 1 if it is right, otherwise 0
        outcome: right, wrong, or no_answer where the grader finds none
        prediction: the answer that the grader found
    """

    completion: Completion
    reward: float
    outcome: Outcome
    prediction: str | None


def grade(completion: Completion, question: Question, grader: Grader, tokenizer: Any) -> Graded:
    """Grade a completion as an evaluation does. Runs in the main thread: graders use signals.

    Raises:
        UserError: the question could not be run, or its grader failed.
    """
    if completion.error is not None:
        raise UserError(f"question {question.number + 1}: {completion.error}")
    prefix = tokenizer.decode(answer_prefix_ids(completion))
    try:
        # behind an answer prefix of the controller, nothing could pass for an answer
        prediction = grader.extract(prefix + completion.answer) if completion.answer else None
        right = grader.is_right(prediction, question.gold)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"question {question.number + 1}: its grader failed on {completion.answer[:60]!r} "
            f"({one_line(error)[:200]}); remove the question"
        ) from error
    outcome: Outcome = "right" if right else "no_answer" if prediction is None else "wrong"
    return Graded(completion, float(right), outcome, prediction)
