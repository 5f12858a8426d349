"""s1_readme and s1_harness give, token by token, what s1 gets by driving an engine from outside."""

import collections
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxs1.decoding import budget
from jaxs1.decoding.budget import Phase, TokenKind
from tests.decoding.cases import DELIMITERS, IS_NEWLINE, NEWLINES, VOCAB, controls_of
from tests.decoding.oracle import Case
from tests.decoding.outside import STATES, Engine, Toy, harness, readme

PROMPTS = 400
STEPS = 160
IM_START, IM_END, END_OF_TEXT = 6, 1, 2
LIKES = {IM_START: 1.0, IM_END: -0.3, END_OF_TEXT: -1.0, 5: 0.7}


@jax.jit
def run_toy(controls, table_NV, noise_NV, number_B):
    """The toy model with the controller inside the loop; nothing is prefilled twice."""
    rows = jnp.arange(number_B.shape[0])

    def one(carry, _):
        state, number_B, kept_B = carry
        was_surplus_B = state.kind == TokenKind.SURPLUS
        ids_BE = budget.forbidden(controls, state)
        logits_BV = table_NV[number_B] + noise_NV[state.position + state.surplus]
        logits_BV = logits_BV.at[rows[:, None], ids_BE].set(-jnp.inf, mode="drop")
        state, token_B, forced_B = budget.step(controls, IS_NEWLINE, state, logits_BV.argmax(-1))
        is_surplus_B = state.kind == TokenKind.SURPLUS
        number_B = jnp.where(was_surplus_B & ~is_surplus_B, kept_B, number_B)
        number_B = (number_B * 31 + token_B + 1) % STATES
        kept_B = jnp.where(is_surplus_B, kept_B, number_B)
        return (state, number_B, kept_B), (token_B, forced_B, state.kind)

    start = (budget.init(controls, IS_NEWLINE), number_B, number_B)
    return jax.lax.scan(one, start, length=STEPS)


def requests(mode, seed):
    """Cases in one mode and their prompts, which end in the start of thinking."""
    rng = random.Random(seed)
    cases, prompts = [], []
    for _ in range(PROMPTS):
        case = Case(
            mode=mode, newlines=NEWLINES, ends=[[IM_START]], stops=[[IM_END], [END_OF_TEXT]]
        )
        case.thinking_budget = rng.choice([1, 2, 4, 8, 16, 24])
        case.num_waits = rng.choice([0, 1, 2, 4])
        case.waits = rng.choice([[[10]], [[10, 3]]])
        case.max_answer_tokens = rng.choice([1, 3, 8, 16])
        if mode == "s1_harness":
            case.close, case.lead, case.answer_prefix = DELIMITERS["s1"]["close"], [5], [5, 3, 0]
        prompts.append([rng.randrange(VOCAB) for _ in range(rng.randrange(1, 6))] + [IM_START, 8])
        case.last = 8
        cases.append(case)
    return cases, prompts


def run_inside(toy, noise_NV, cases, prompts):
    """Tokens, forced, kinds and the surplus of every sequence, without what follows its end."""
    numbers = np.asarray([Toy.fold(p) for p in prompts], np.int32)
    (state, *_), steps = run_toy(controls_of(cases), jnp.asarray(toy.table_NV), noise_NV, numbers)
    assert (np.asarray(state.phase) == Phase.DONE).all()
    token_TB, forced_TB, kind_TB = map(np.asarray, steps)
    surplus_TB = kind_TB == TokenKind.SURPLUS
    real_TB = (kind_TB != TokenKind.PAD) & ~surplus_TB
    return [
        (token_TB[real, b].tolist(), forced_TB[real, b], kind_TB[real, b], int(surplus_T.sum()))
        for b, (real, surplus_T) in enumerate(zip(real_TB.T, surplus_TB.T, strict=True))
    ]


def noise(temperature):
    """Noise of every draw, tokens x ids; the same numbers outside and inside."""
    gumbel_NV = np.random.default_rng(0).gumbel(size=(STEPS, VOCAB))
    return (temperature * gumbel_NV).astype(np.float32)


@pytest.mark.parametrize("temperature", [0, 1])
def test_readme(temperature):
    toy, noise_NV = Toy(VOCAB, LIKES, seed=1), noise(temperature)
    engine = Engine(toy, [IM_END, END_OF_TEXT], noise_NV)
    cases, prompts = requests("s1_readme", seed=1)
    seen = collections.Counter()
    for case, prompt, (tokens, forced, kinds, _) in zip(
        cases, prompts, run_inside(toy, noise_NV, cases, prompts), strict=True
    ):
        expected = readme(
            engine,
            prompt,
            thinking_budget=case.thinking_budget,
            num_ignore=case.num_waits,
            wait=case.waits[0],
            stops=[IM_START, IM_END],
            answer_stops=[IM_END],
            max_answer_tokens=case.max_answer_tokens,
        )
        assert tokens == expected, (case, prompt)
        waits = int((kinds == TokenKind.WAIT).sum()) // len(case.waits[0])
        assert forced.sum() == waits * len(case.waits[0])
        seen[f"waits {waits}"] += 1
        seen[f"answer begins with {tokens[list(kinds).index(TokenKind.ANSWER)]}"] += 1
        seen["wait given up"] += waits < case.num_waits
    assert min(seen[f"waits {n}"] for n in range(5)) > 3, seen
    assert min(seen[f"answer begins with {n}"] for n in (IM_START, IM_END, END_OF_TEXT, 0)) > 3


@pytest.mark.parametrize("temperature", [0, 1])
def test_harness(temperature):
    """Every rule; rounds that continue beyond the budget are thrown away but choose the close."""
    toy, noise_NV = Toy(VOCAB, LIKES, seed=2), noise(temperature)
    engine = Engine(toy, [IM_END, END_OF_TEXT], noise_NV)
    cases, prompts = requests("s1_harness", seed=2)
    seen = collections.Counter()
    for case, prompt, (tokens, _, kinds, thrown_away) in zip(
        cases, prompts, run_inside(toy, noise_NV, cases, prompts), strict=True
    ):
        expected, thought, surplus = harness(
            engine,
            prompt,
            thinking_budget=case.thinking_budget,
            num_ignore=case.num_waits or None,
            wait=case.waits[0],
            stops=[IM_START, IM_END],
            close=case.close,
            answer_prefix=case.answer_prefix,
            newline=case.lead,
            newlines=NEWLINES,
            answer_stops=[IM_END],
            max_answer_tokens=case.max_answer_tokens,
        )
        waits = int((kinds == TokenKind.WAIT).sum())
        seen["answer_prefix" if TokenKind.ANSWER_PREFIX in kinds else "plain close"] += 1
        seen["wait"] += waits > 0
        seen["part of a wait"] += waits % len(case.waits[0]) > 0
        seen["line break left out"] += (
            TokenKind.ANSWER_PREFIX in kinds and expected[thought] == IM_START
        )
        how = "cut" if TokenKind.ANSWER_PREFIX in kinds else "plain close"
        seen[f"surplus, {how}"] += bool(surplus)
        assert tokens == expected, (case, prompt)
        assert thrown_away == len(surplus)
        assert kinds[thought] == TokenKind.CLOSE
    assert min(seen.values()) > 3, seen
    assert min(seen[f"surplus, {how}"] for how in ("cut", "plain close")) > 30, seen
