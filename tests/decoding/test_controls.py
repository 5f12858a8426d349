"""Budgets fit behind their prompts or say so; arrays have one shape and hold what was requested."""

import jax
import numpy as np
import pytest

from jaxs1.config import UserError
from jaxs1.decoding import budget
from jaxs1.decoding.budget import EndedBy, Finish, Phase, TokenKind
from jaxs1.decoding.controls import build_controls, capacity, check_sizes, fit, newline_table
from jaxs1.decoding.params import Delimiters, ThinkingParams
from jaxs1.decoding.tokenized_thinking import tokenize_thinking
from jaxs1.model.kv_cache import PAGE
from tests.decoding.words import Words, tag_tokenizer


def test_newlines_of_qwen(qwen):
    is_newline_V = newline_table(qwen)
    assert is_newline_V.shape == (len(qwen),)
    for text, expected in {"\n": True, ".\n\n": True, "x": False, "\n ": False}.items():
        assert is_newline_V[qwen(text)["input_ids"][-1]] == expected, text
    assert not is_newline_V[qwen.convert_tokens_to_ids("<|im_start|>")]


def test_newlines():
    assert np.flatnonzero(newline_table(Words("x\n", "\nx"))).tolist() == [6, 9]


def one(thinking, prompt_length, context=400, tokenizer=None):
    tokenizer = tokenizer or Words()
    thinking = tokenize_thinking(thinking, tokenizer)
    prompt = [8] * prompt_length + list(thinking.start)
    limits = fit(thinking, len(prompt), context)
    return build_controls([thinking], [prompt], [limits]), limits.note


@pytest.mark.parametrize("prompt_length", [1, 10, 200])
def test_a_budget_is_clamped_to_the_context_with_a_note(prompt_length):
    controls, note = one(ThinkingParams(max=10_000), prompt_length)
    left = 400 - prompt_length - 2 - 3 - 100
    assert controls.thinking_budget.tolist() == [left]
    assert note.startswith(f"thinking.max=10000: clamped to {left}")
    controls, note = one(ThinkingParams(max=left), prompt_length)
    assert controls.thinking_budget.tolist() == [left] and note is None
    controls, note = one(ThinkingParams(), prompt_length)
    assert controls.thinking_budget.tolist() == [-1] and note is None


def test_a_run_ends_inside_the_context_with_a_complete_close():
    """A model that never stops: thinking to the reserved tokens, close, answer to the last one."""
    controls, _ = one(ThinkingParams(min_answer_tokens=20, answer_prefix="\n"), 30, context=100)
    is_newline_V = newline_table(Words())
    state = jax.jit(budget.init)(controls, is_newline_V)
    step = jax.jit(budget.step)
    tokens, kinds = [], []
    while state.phase[0] != Phase.DONE:
        state, token, _ = step(controls, is_newline_V, state, np.asarray([8], np.int32))
        tokens.append(int(token[0]))
        kinds.append(int(state.kind[0]))
    assert 32 + len(tokens) == 100
    assert kinds.count(TokenKind.ANSWER) == 20
    assert tokens[44:48] == [6, 2, 5, 6]
    assert state.ended_by.tolist() == [EndedBy.CONTEXT]
    assert state.finish.tolist() == [Finish.LENGTH]


def test_off_is_all_answer_and_the_rest_of_the_batch_thinks():
    thinking = [
        tokenize_thinking(ThinkingParams(mode=m, max=7), Words()) for m in ("off", "strict")
    ]
    prompts = [[8], [8, 2, 4]]
    limits = [fit(t, len(p), 400) for t, p in zip(thinking, prompts, strict=True)]
    controls = build_controls(thinking, prompts, limits)
    assert jax.jit(budget.init)(controls, newline_table(Words())).phase.tolist() == [
        Phase.ANSWER,
        Phase.THINK,
    ]


def test_thinking_of_different_shapes_share_sizes():
    tokenizer = tag_tokenizer()
    small = tokenize_thinking(ThinkingParams(), tokenizer)
    large = tokenize_thinking(
        ThinkingParams(preset="think_tags", wait_strings=("Wait", "xxx", "x")), tokenizer
    )
    rows = [build_controls([s], [[8]], [fit(s, 1, 400)]) for s in (small, large)]
    assert jax.tree.map(np.shape, rows[0]) == jax.tree.map(np.shape, rows[1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"wait_strings": ("x",) * 17}, r"number of strings is 17: must be at most 16"),
        ({"wait_strings": ("x" * 65,)}, r"wait_strings: tokens of a wait string.* is 65: .* 64"),
        ({"delimiters": Delimiters(stop=(*"xW\n", "xx", "xxx", "Wait", "think", "answer"))},
         r"number of ends and stops is \d+: must be at most 8; use fewer"),
        ({"delimiters": Delimiters(ends=("x" * 17,))}, r"tokens of an end or a stop is 17: .* 16"),
    ],
)  # fmt: skip
def test_texts_that_exceed_the_arrays(fields, message):
    with pytest.raises(UserError, match=message):
        check_sizes(tokenize_thinking(ThinkingParams(**fields), Words()))
    check_sizes(tokenize_thinking(ThinkingParams(wait_strings=("x",) * 16), Words()))


@pytest.mark.parametrize(
    ("fields", "prompt_length", "message"),
    [
        ({}, 399, r"prompt of 401 tokens: leaves 0 of the context's 400"),
        ({}, 296, r"prompt of 298 tokens: leaves 102 .* need 103; shorten it or lower"),
        ({"min": 200}, 200, r"thinking.min=200: does not fit, .* leaves 95 after a prompt of 202"),
        ({"mode": "off"}, 0, r"prompt: is empty"),
    ],
)
def test_what_does_not_fit(fields, prompt_length, message):
    with pytest.raises(UserError, match=message) as caught:
        one(ThinkingParams(**fields), prompt_length)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prompt_length", [1, 40, 300])
@pytest.mark.parametrize("answer", [1, 30, -1])
def test_pages_hold_all_that_can_follow(prompt_length, answer):
    """Budget, Waits, texts and answer, rounded up to pages; no more than the context."""
    params = ThinkingParams(
        max=50, num_waits=2, wait_strings=("Wait", "xx"), max_answer_tokens=answer,
        min_answer_tokens=1,
    )  # fmt: skip
    thinking = tokenize_thinking(params, Words())
    limits = fit(thinking, prompt_length, 400)
    behind = 50 + 2 * 2 + len(thinking.cut) + answer if answer > 0 else 400
    longest = min(400, prompt_length + behind)
    assert (limits.num_pages - 1) * PAGE < longest <= limits.num_pages * PAGE
    assert limits.max_new_tokens == min(400, limits.num_pages * PAGE) - prompt_length


@pytest.mark.parametrize(("waits", "answer", "needed"), [(0, 3, 10), (2, 3, 14), (2, 40, 49)])
def test_room_for_a_surplus_that_is_discarded(waits, answer, needed):
    """All rounds are cached before the answer overwrites what exceeds one budget."""
    thinking = ThinkingParams(
        mode="s1_harness", max=4, num_waits=waits, max_answer_tokens=answer, answer_prefix=""
    )
    thinking = tokenize_thinking(thinking, Words())
    assert capacity(thinking, 4, 1000) == needed
