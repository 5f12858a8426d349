"""Rows hold what their sequences say; settings decide what is compiled."""

import jax
import numpy as np
import pytest

from jaxs1.decoding.budget import Finish, Phase
from jaxs1.decoding.controls import fit
from jaxs1.decoding.decode_loop import halt, insert, reorder
from jaxs1.decoding.decode_state import NewSequence, empty_rows, rows_of, sampling_flags, table
from jaxs1.decoding.params import SamplingParams, ThinkingParams
from jaxs1.decoding.sampling import SamplingFlags
from jaxs1.decoding.tokenized_thinking import tokenize_thinking
from jaxs1.model.kv_cache import NULL_PAGE, PAGE
from tests.decoding.words import Words

IS_NEWLINE = np.asarray([word.endswith("\n") for word in Words().words])
V = len(IS_NEWLINE)
HOT = SamplingParams(0.7, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.2)


def sequence(prompt, *, sampling=HOT, seed=3, sample=0, budget=7):
    params = ThinkingParams(max=budget, max_answer_tokens=9, min_answer_tokens=1)
    thinking = tokenize_thinking(params, Words())
    limits = fit(thinking, len(prompt), 2 * PAGE)
    pages = list(range(5, 5 + limits.num_pages))
    return NewSequence(thinking, prompt, pages, limits, sampling, seed, sample)


def test_rows_hold_what_their_sequences_say():
    cold = SamplingParams(answer_temperature=0.5)
    new = [sequence([8, 7, 2, 4], seed=-1), sequence([2, 4], sampling=cold, sample=2, budget=0)]
    state = rows_of(new, 4, max_pages=3, is_newline_V=IS_NEWLINE)
    assert {x.shape[0] for x in jax.tree.leaves(state)} == {4}
    assert state.token.tolist() == [4, 4, 4, 4]
    assert state.position.tolist() == [3, 1, 1, 1]  # the last one is repeated
    assert state.table_BM.tolist() == [[5, NULL_PAGE, NULL_PAGE]] * 4
    assert state.controls.thinking_budget.tolist() == [7, 0, 0, 0]
    assert state.controls.max_new_tokens.tolist() == [PAGE - 4, *[PAGE - 2] * 3]
    assert state.state.phase.tolist() == [Phase.THINK, *[Phase.INJECT] * 3]
    sampling = state.sampling
    np.testing.assert_allclose(sampling.temperature, [0.7, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(sampling.answer_temperature, [0.7, 0.5, 0.5, 0.5], rtol=1e-6)
    assert sampling.top_k.tolist() == [5, 0, 0, 0]
    # prompts count as seen only where that matters
    assert [np.flatnonzero(row).tolist() for row in sampling.seen_BV] == [[2, 4, 7, 8], [], [], []]
    keys = [jax.random.fold_in(jax.random.PRNGKey(s & 0xFFFFFFFF), i) for s, i in ((-1, 0), (3, 2))]
    assert sampling.key_B[:2].tolist() == [key.tolist() for key in keys]


def test_empty_rows_are_over():
    state = empty_rows(3, max_pages=2, is_newline_V=IS_NEWLINE)
    assert state.state.phase.tolist() == [Phase.DONE] * 3
    assert state.state.finish.tolist() == [Finish.LENGTH] * 3
    assert (state.table_BM == NULL_PAGE).all()
    filled = rows_of([sequence([8])], 3, max_pages=2, is_newline_V=IS_NEWLINE)
    assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, filled)


def test_rows_are_inserted_reordered_and_halted():
    state = empty_rows(4, max_pages=2, is_newline_V=IS_NEWLINE)
    new = rows_of([sequence([8]), sequence([8, 7])], 4, max_pages=2, is_newline_V=IS_NEWLINE)
    state = insert(jax.tree.map(jax.numpy.asarray, state), new, np.asarray([3, 1, 4, 4], np.int32))
    done, think = Phase.DONE, Phase.THINK
    assert state.state.phase.tolist() == [done, think, done, think]
    assert state.position.tolist() == [0, 1, 0, 0]
    state = reorder(state, np.asarray([1, 3, 0, 2], np.int32))
    assert state.position.tolist() == [1, 0, 0, 0]
    assert state.state.phase.tolist() == [think, think, done, done]
    before = state
    state = halt(state, np.asarray([0, 4], np.int32))
    assert state.state.phase.tolist() == [done, think, done, done]
    undone = state._replace(state=state.state._replace(phase=before.state.phase))
    assert all(map(np.array_equal, jax.tree.leaves(undone), jax.tree.leaves(before)))


def test_a_table_is_padded_and_cut():
    assert table([[1, 2, 3], [4]], 3, 2).tolist() == [[1, 2], [4, NULL_PAGE], [NULL_PAGE] * 2]


@pytest.mark.parametrize(
    ("params", "flags"),
    [
        ([SamplingParams()], (False, False, False)),
        ([SamplingParams(), SamplingParams(1.0)], (True, False, False)),
        ([SamplingParams(answer_temperature=1.0)], (True, False, False)),
        ([SamplingParams(1.0, top_k=3), SamplingParams()], (True, True, False)),
        ([SamplingParams(1.0, top_p=0.5)], (True, True, False)),
        ([SamplingParams(1.0, min_p=0.5)], (True, True, False)),
        ([SamplingParams(top_k=3, min_p=0.1)], (False, False, False)),  # greedy: no filter matters
        ([SamplingParams(repetition_penalty=1.1)], (False, False, True)),
    ],
)
def test_flags_are_what_any_sequence_needs(params, flags):
    assert sampling_flags(params) == SamplingFlags(*flags)
