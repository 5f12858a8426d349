"""Outcomes of completions, and what a roll-out says in numbers."""

import dataclasses

import numpy as np
import pytest

from jaxs1.config import UserError
from jaxs1.decoding.outputs import Completion, Intervention
from jaxs1.rl.plan import Group
from jaxs1.rl.report import LiveGroups, rollout_metrics
from jaxs1.rl.rewards import grade
from jaxs1.tasks.benchmarks import GRADERS, Question
from jaxs1.tasks.graders import Grader
from tests.decoding.words import Words

QUESTION = Question(6, "Which?", "7")
TOKENIZER = Words("Final Answer:", "7", "8")


def completion(answer, *, ended_by="model", thinking=3):
    """Thinking, an answer prefix of one forced token, an answer."""
    usage = {"thinking_tokens": thinking, "answer_tokens": 1, "forced_tokens": 1,
             "completion_tokens": thinking + 2}  # fmt: skip
    return Completion(
        prompt_ids=[4], tokens=[8] * thinking + [9, 10], forced=[False] * thinking + [True, False],
        answer=answer, interventions=[Intervention(thinking, "answer_prefix", None)],
        thinking_ended_by=ended_by, usage=usage,
    )  # fmt: skip


def graded(answer, **more):
    return grade(completion(answer, **more), QUESTION, GRADERS["integer"], TOKENIZER)


def test_right_wrong_and_no_answer():
    """The answer prefix, which the controller wrote, makes the number an answer."""
    found = [graded(answer) for answer in ("7", "8", "")]
    assert [g.outcome for g in found] == ["right", "wrong", "no_answer"]
    assert [g.reward for g in found] == [1, 0, 0]
    assert found[0].prediction == "7" and found[2].prediction is None


def test_errors_name_the_question():
    failed = dataclasses.replace(completion("7"), error="prompt is too long")
    with pytest.raises(UserError, match="question 7: prompt is too long"):
        grade(failed, QUESTION, GRADERS["integer"], TOKENIZER)

    def extract(text):
        raise RecursionError("deep\nnesting")

    with pytest.raises(UserError, match=r"question 7: its grader failed on '7' \(deep nesting\)"):
        grade(completion("7"), QUESTION, Grader(extract, str.__eq__), TOKENIZER)


def test_a_rollout_in_numbers():
    groups = [Group(0, 8, 1), Group(1, 16, 2), Group(2, 8, 3)]
    rollout = [
        [graded("7", thinking=2), graded("8", ended_by="budget", thinking=8)],
        [graded("7"), graded("7")],
        [graded(""), graded("8", ended_by="context")],
    ]
    values = rollout_metrics(groups, rollout, np.array([True, False, False]))
    assert values["reward"] == pytest.approx(0.5)
    assert (values["reward/8"], values["reward/16"]) == (0.25, 1)
    shares = [values[x] for x in ("right", "wrong", "no_answer")]
    assert shares == pytest.approx([3 / 6, 2 / 6, 1 / 6])
    assert [values[x] for x in ("live_groups", "dead_right", "dead_wrong")] == pytest.approx(
        [1 / 3] * 3
    )
    assert values["thinking_tokens"] == pytest.approx((2 + 8 + 4 * 3) / 6)
    ended = [values[f"ended_by_{x}"] for x in ("model", "budget", "context")]
    assert ended == pytest.approx([4 / 6, 1 / 6, 1 / 6])
    assert values["forced"] == pytest.approx(6 / (22 + 12)) and values["sequences"] == 2


def test_budgets_at_which_nothing_is_learnt_are_named():
    live = LiveGroups()
    for _ in range(10):
        live.add([Group(0, 8, 1), Group(1, 16, 2), Group(2, 16, 3)], np.array([False, True, False]))
    (line,) = live.warnings()
    assert line.startswith("warning: with a budget of 8 tokens 0% of 10 groups are live")
