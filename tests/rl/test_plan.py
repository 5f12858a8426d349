"""A plan is a function of seed and step; budgets and questions come as often as they should."""

import collections

import numpy as np
import pytest

from jaxs1.config import UserError
from jaxs1.decoding.params import SamplingParams, ThinkingParams
from jaxs1.rl.advantages import advantages
from jaxs1.rl.config import BudgetsConfig, HeldOutConfig, ObjectiveConfig
from jaxs1.rl.learner import Requests
from jaxs1.rl.plan import budgets_at, plan_groups, update_order
from tests.decoding.engines import tokenizer


def groups(step, seed=0, **more):
    settings = {"num_questions": 10, "prompts": 4, "budgets": BudgetsConfig((8, 16, 32))} | more
    return plan_groups(step, seed=seed, **settings)


def test_an_epoch_takes_every_question_at_most_once():
    for epoch in range(3):
        taken = [g.question for step in (2 * epoch, 2 * epoch + 1) for g in groups(step)]
        assert len(set(taken)) == 8
    assert [g.question for g in groups(0)] != [g.question for g in groups(2)]


def test_the_same_step_is_the_same_whatever_came_before():
    assert groups(7) == groups(7)
    assert groups(7) != groups(8) and groups(7) != groups(7, seed=1)
    seeds = [g.seed for step in range(50) for g in groups(step)]
    assert len(set(seeds)) == len(seeds)


def test_budgets_are_drawn_evenly():
    drawn = collections.Counter(g.budget for step in range(300) for g in groups(step))
    assert set(drawn) == {8, 16, 32}
    assert all(abs(n - 400) < 5 * np.sqrt(1200 * 2 / 9) for n in drawn.values()), drawn


def test_a_schedule_moves_linearly_and_stays():
    config = BudgetsConfig((10, 100), start=(50, 200), until=4)
    assert [budgets_at(step, config) for step in (0, 1, 4, 9)] == [
        [50, 200], [40, 175], [10, 100], [10, 100],
    ]  # fmt: skip
    assert config.largest == 200


def test_a_budget_is_told_where_it_is_asked_for():
    thinking = ThinkingParams(preset="s1", max_answer_tokens=4)
    told, silent = (
        Requests(thinking, tokenizer(), sentence, temperature=0.7)
        for sentence in ("Think for up to {value} tokens.", None)
    )
    text = tokenizer().decode(told.prompt("1+1?", 64))
    assert "1+1?\n\nThink for up to 64 tokens.<|im_end|>" in text
    assert "Think for" not in tokenizer().decode(silent.prompt("1+1?", 64))
    request = told.sampled("1+1?", 64, 3, 5)
    assert (request.thinking.max, request.n, request.seed, request.logprobs) == (64, 3, 5, True)
    assert request.sampling == SamplingParams(temperature=0.7)
    assert told.greedy("1+1?", 64).sampling.is_greedy


def test_updates_take_every_sequence_once():
    parts = update_order(3, seed=0, sequences=10, updates=3)
    assert sorted(np.concatenate(parts)) == list(range(10)) and [len(p) for p in parts] == [4, 3, 3]
    assert update_order(3, seed=0, sequences=4, updates=1)[0].tolist() == [0, 1, 2, 3]


def test_advantages_by_hand():
    reward = [[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]]
    plain, live = advantages(np.array(reward), "none")
    assert live.tolist() == [True, False, False, True]
    assert plain.tolist() == [[0.75, -0.25, -0.25, -0.25], [0] * 4, [0] * 4, [0.5, 0.5, -0.5, -0.5]]
    group, _ = advantages(np.array(reward), "group")
    assert group[0] == pytest.approx(np.array([0.75, -0.25, -0.25, -0.25]) / (3 / 16) ** 0.5)
    assert group[3].tolist() == [1, 1, -1, -1] and not group[1:3].any()
    batch, _ = advantages(np.array(reward), "batch")
    deviation = (7 / 16 * 9 / 16) ** 0.5  # 7 of 16 are right
    assert batch[3] == pytest.approx(np.array([0.5, 0.5, -0.5, -0.5]) / deviation)


def test_equal_rewards_are_dead_to_the_last_bit():
    """Equality of rewards decides: the mean of equal numbers need not equal them."""
    for normalize in ("none", "group", "batch"):
        values, live = advantages(np.full((2, 3), 0.1), normalize)
        assert not live.any() and not values.any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BudgetsConfig(()), "budgets.values=[]"),
        (lambda: BudgetsConfig((8, -1)), "budgets.values=[8, -1]"),
        (lambda: BudgetsConfig((8, 9), start=(4,), until=3), "budgets.start=[4]"),
        (lambda: BudgetsConfig((8,), until=3), "budgets.until=3"),
        (lambda: BudgetsConfig((8,), told="Hurry"), "{value}"),
        (lambda: ObjectiveConfig(surrogate="cispo"), "objective.cap=null"),
        (lambda: ObjectiveConfig(clip_low=1.5), "objective.clip_low=1.5"),
        (lambda: ObjectiveConfig(kl=-1), "objective.kl=-1"),
        (lambda: ObjectiveConfig(updates=0), "objective.updates=0"),
        (lambda: HeldOutConfig(every=5, path="x"), "held_out.budgets=[]"),
        (lambda: HeldOutConfig(every=5, budgets=(8,)), "held_out.path=null"),
    ],
)
def test_what_cannot_be_is_one_line(make, words):
    with pytest.raises(UserError) as error:
        make()
    assert words in str(error.value) and "\n" not in str(error.value)
