"""`budget.step` equals the plain-Python oracle, keeps its promises, and is one compiled program."""

import collections
import random

import jax
import numpy as np
import pytest

from jaxs1.decoding import budget
from jaxs1.decoding.budget import Phase, TokenKind
from jaxs1.decoding.outputs import interventions
from tests.decoding.cases import (
    ENDED,
    FINISH,
    IS_NEWLINE,
    KINDS,
    VOCAB,
    controls_of,
    play,
    random_case,
    random_stream,
    run,
)

STEPS = 40
BATCH = 2048


def random_batch(seed, mode=None, change=lambda case, rng: None):
    rng = random.Random(seed)
    cases = [random_case(rng, mode) for _ in range(BATCH)]
    for case in cases:
        change(case, rng)
    streams = [random_stream(case, rng, STEPS) for case in cases]
    return cases, streams


def run_batch(cases, streams, obey=True):
    state, steps = run(controls_of(cases), np.asarray(streams, np.int32).T, obey=obey)
    ids_TBE, token_TB, forced_TB, kind_TB = (np.asarray(x) for x in steps)
    return jax.tree.map(np.asarray, state), ids_TBE, token_TB.T, forced_TB.T, kind_TB.T


def compare(case, stream, outcome, b, obey):
    """One sequence of a batch against the oracle; returns the oracle."""
    state, ids_TBE, token_BT, forced_BT, kind_BT = outcome
    oracle, banned = play(case, stream, obey)
    n = len(oracle.tokens) + len(oracle.surplus)
    what = f"sequence {b}: {case}, choices {stream}"
    kept_T = kind_BT[b] != TokenKind.SURPLUS
    kept_T[n:] = False
    assert token_BT[b, kept_T].tolist() == oracle.tokens, what
    assert forced_BT[b, kept_T].tolist() == oracle.forced, what
    assert [KINDS[k] for k in kind_BT[b, kept_T]] == oracle.kinds, what
    assert not kind_BT[b, n:].any() and not forced_BT[b, n:].any(), what
    assert state.surplus[b] == len(oracle.surplus) and state.position[b] == len(oracle.tokens), what
    for t in range(STEPS):
        expected = banned[t] if t < n else set()
        assert set(ids_TBE[t, b].tolist()) - {budget.NEVER} == expected, f"step {t}, {what}"
    assert ENDED[state.ended_by[b]] == oracle.ended_by, what
    assert FINISH[state.finish[b]] == oracle.finish, what
    assert (state.phase[b] == Phase.DONE) == oracle.over, what
    lengths = [len(w) for w in case.waits]
    log = interventions(kind_BT[b, kept_T].tolist(), forced_BT[b, kept_T].tolist(), lengths)
    assert log == oracle.log, what
    return oracle


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_oracle(seed):
    cases, streams = random_batch(seed)
    outcome = run_batch(cases, streams)
    seen = collections.Counter()
    for b, (case, stream) in enumerate(zip(cases, streams, strict=True)):
        oracle = compare(case, stream, outcome, b, obey=True)
        seen.update(events(case, oracle))
    # the generator is not blind to an edge
    assert not [e for e in EVENTS if not seen[e]]


@pytest.mark.parametrize("seed", [100, 101])
def test_equals_the_oracle_when_the_sampler_ignores_what_is_forbidden(seed):
    cases, streams = random_batch(seed)
    outcome = run_batch(cases, streams, obey=False)
    for b, (case, stream) in enumerate(zip(cases, streams, strict=True)):
        compare(case, stream, outcome, b, obey=False)


def begin_answers(case, rng):
    """Calls that end a thought, and texts that begin answers; 4 ends a stop of two tokens, too."""
    case.calls = rng.choice([[], [[4]], [[4]], [[14]]])
    case.start = rng.choice([[], [], [3], [4, 0, 3]])


@pytest.mark.parametrize("seed", [50, 51])
def test_equals_the_oracle_where_the_controller_begins_answers(seed):
    cases, streams = random_batch(seed, "strict", begin_answers)
    outcome = run_batch(cases, streams)
    seen = collections.Counter()
    for b, (case, stream) in enumerate(zip(cases, streams, strict=True)):
        oracle = compare(case, stream, outcome, b, obey=True)
        begun = any(kind == "answer" for _, kind, _ in oracle.log)
        seen[bool(case.start), bool(case.calls), begun] += 1
    # an answer begins by force only where there is a text for it
    assert (
        not seen[False, False, True] and min(seen[True, False, True], seen[False, True, True]) > 50
    )


EVENTS = [
    *(f"{mode} {what}" for mode in ("strict", "s1_readme", "s1_harness") for what in (
        "budget 0", "budget 1", "by model", "by budget", "by context", "wait", "two strings",
        "wait did not fit", "min = max", "stop", "length")),
    "strict EOS inside thinking", "s1_harness EOS inside thinking", "strict reopened",
    "strict reopened with nothing left", "strict end as first token",
    "strict answer_prefix", "strict line break left out",
    "strict end of several tokens", "strict whole end", "s1_harness cut wait",
    "s1_harness surplus by model", "s1_harness surplus by budget",
    "s1_harness surplus by context", "s1_harness surplus of two rounds",
]  # fmt: skip


def events(case, oracle):  # noqa: C901  (one flat list of independent conditions)
    """Names of the edges that one sequence went through."""
    kinds, log = oracle.kinds, oracle.log
    waits = [entry for entry in log if entry[1] == "wait"]
    found = {f"budget {case.thinking_budget}", f"by {oracle.ended_by}", str(oracle.finish)}
    if waits:
        found.add("wait")
    if len({string for _, _, string in waits}) > 1:
        found.add("two strings")
    if oracle.ended_by == "model" and len(waits) < case.num_waits:
        found.add("wait did not fit")
    if 0 < case.min_thinking == case.thinking_budget:
        found.add("min = max")
    if "answer_prefix" in kinds:
        found.add("answer_prefix")
    first = kinds.index("close") if "close" in kinds else None
    if first is not None and oracle.forced[first]:
        before = oracle.tokens[first - 1] if first else case.last
        if oracle.ended_by == "model" and before not in case.ends[0]:
            found.add("EOS inside thinking")
        if oracle.ended_by == "budget" and case.lead and before in case.newlines:
            found.add("line break left out")
    elif first is not None:
        found |= {"end as first token"} if first == 0 else set()
        found |= {"end of several tokens"} if len(case.ends[0]) > 1 else set()
        found |= {"whole end"} if oracle.tokens[first] == 13 and case.whole else set()
    if "answer" in kinds:
        rest = kinds[kinds.index("answer") :]
        found |= {"reopened"} if "thinking" in rest else set()
        found |= {"reopened with nothing left"} if "close" in rest else set()
    if case.mode == "s1_harness" and case.thinking_budget >= 0:
        counted = kinds.count("thinking") + kinds.count("wait")
        length = sum(len(case.waits[s]) for _, _, s in waits)
        found |= {"cut wait"} if kinds.count("wait") < length else set()
        assert not oracle.surplus or counted == case.thinking_budget
        if oracle.surplus and oracle.finish:
            room = counted + len(oracle.surplus) == case.max_new_tokens
            found.add(f"surplus by {'context' if room else oracle.ended_by}")
            found |= (
                {"surplus of two rounds"} if len(oracle.surplus) > case.thinking_budget else set()
            )
    return {f"{case.mode} {name}" for name in found}


def test_strict_control_is_complete():
    """Never above the budget, never below the minimum, Waits as asked unless the log says why."""
    checked = 0
    for seed in (200, 201):
        cases, streams = random_batch(seed, "strict")
        state, _, _, _, kind_BT = run_batch(cases, streams)
        for b, case in enumerate(cases):
            kinds = [KINDS[k] for k in kind_BT[b]]
            thinking = kinds.count("thinking") + kinds.count("wait")
            assert thinking == state.thinking_used[b]
            assert case.thinking_budget < 0 or thinking <= case.thinking_budget
            why = ENDED[state.ended_by[b]]
            if why is None or "close" not in kinds:
                continue  # the choices ran out before
            checked += 1
            assert thinking >= case.min_thinking or why == "context"
            if why == "budget":
                assert thinking == case.thinking_budget
            reopened = "thinking" in kinds[kinds.index("close") :]
            if why == "model" and state.waits_left[b] and not reopened:
                injected = case.num_waits - state.waits_left[b]
                needed = len(case.waits[injected % len(case.waits)]) + 1
                reserved_tokens = (
                    len(case.lead + case.close + case.answer_prefix) + case.min_answer_tokens
                )
                over_budget = 0 <= case.thinking_budget < thinking + needed
                assert over_budget or thinking + needed > case.max_new_tokens - reserved_tokens, (
                    case
                )
    assert checked > 2000


def test_neighbours_and_slots_do_not_matter():
    """Alone, or between others: the same tokens."""
    cases, streams = random_batch(300)
    _, _, token_BT, forced_BT, _ = run_batch(cases, streams)
    order = np.random.default_rng(0).permutation(BATCH)
    _, _, moved_BT, moved_forced_BT, _ = run_batch(
        [cases[i] for i in order], [streams[i] for i in order]
    )
    assert (moved_BT == token_BT[order]).all()
    assert (moved_forced_BT == forced_BT[order]).all()


def test_an_empty_slot_is_done():
    controls = controls_of([random_case(random.Random(0))])
    empty = jax.tree.map(lambda x: x * 0, controls)
    state = jax.jit(budget.init)(empty, IS_NEWLINE)
    assert state.phase.tolist() == [Phase.DONE]
    state, token, forced = jax.jit(budget.step)(empty, IS_NEWLINE, state, np.asarray([7], np.int32))
    assert (state.phase.tolist(), token.tolist(), forced.tolist()) == ([Phase.DONE], [7], [False])


def test_init_and_step_agree_on_types_so_that_nothing_compiles_twice():
    controls = controls_of([random_case(random.Random(seed)) for seed in range(3)])
    state = jax.jit(budget.init)(controls, IS_NEWLINE)
    sampled = jax.numpy.zeros(3, np.int32)
    after, token, forced = jax.jit(budget.step)(controls, IS_NEWLINE, state, sampled)
    assert (token.dtype, forced.dtype) == (np.int32, bool)

    def kinds(tree):
        return [(x.shape, x.dtype, x.weak_type) for x in map(jax.typeof, jax.tree.leaves(tree))]

    assert kinds(state) == kinds(after)
    assert all(dtype == np.int32 and not weak for _, dtype, weak in kinds(state))


def test_forbidden_ids_are_out_of_bounds_where_nothing_is_forbidden():
    """The line of its docstring masks what it should and no other id, the last one above all."""
    cases = [random_case(random.Random(seed)) for seed in range(64)]
    controls = controls_of(cases)
    ids_BE = jax.jit(lambda c: budget.forbidden(c, budget.init(c, IS_NEWLINE)))(controls)
    logits_BV = jax.numpy.zeros((64, VOCAB))
    masked_BV = logits_BV.at[np.arange(64)[:, None], ids_BE].set(-np.inf, mode="drop")
    for row, ids in zip(np.asarray(masked_BV), np.asarray(ids_BE), strict=True):
        assert set(np.flatnonzero(row == -np.inf)) == {i for i in ids.tolist() if i < VOCAB}
