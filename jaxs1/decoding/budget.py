"""Budget forcing: which token a sequence really gets, decided inside the compiled loop.

A completion thinks, then answers. `step` looks at the token that the model chose and either keeps
it or writes another: a Wait where the model would stop thinking too early, the end of thinking and
a answer_prefix where its budget is used up (s1, arXiv 2501.19393, section 3.1). That happens before the token
reaches the sequence and the KV cache, so nothing is ever rolled back. The file knows token ids: no
text, no model, no logits. All of it is pure and runs under jit; the loop around it is

    state = init(controls, is_newline_V)
    sampled_B = ...        # from logits in which `forbidden(controls, state)` are -inf
    state, token_B, forced_B = step(controls, is_newline_V, state, sampled_B)

until every `state.phase` is DONE. The host keeps three things per step, `token_B`, `forced_B` and
`state.kind`: the kinds split a completion into thinking, close, answer_prefix and answer, and
`interventions` makes the log from them; why thinking ended is in the last state's `ended_by`.

Letters: B sequences, E ends of thinking, S stops of the answer, L tokens of the longest of these,
K texts that can be written, T tokens of the longest, V ids. Fields without letters are [B].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

#: Fills what is unused of an array of ids. Never an id, never matched.
NONE = -1
#: Fills what is unused of `forbidden`: out of bounds of any vocabulary (-1 would be its last id).
NEVER = int(np.iinfo(np.int32).max)
#: A budget without limit.
UNLIMITED = -1

# modes
STRICT, S1_README, S1_HARNESS = range(3)
# phases
THINK, INJECT, ANSWER, DONE = range(4)
#: What a token is. PASSED: nothing, the sequence had ended before.
PASSED, THINKING, WAIT, CLOSE, ANSWER_PREFIX, ANSWERING = range(6)
#: Why thinking ended last: not yet, by the model, by its budget, by the context window.
OPEN, BY_MODEL, BY_BUDGET, BY_CONTEXT = range(4)
#: Why a sequence ended: not yet, a stop of the answer, max_answer_tokens or the context window.
RUNNING, STOP, LENGTH = range(3)
#: Rows of `Controls.text_BKT`; the wait strings follow.
CLOSE_TEXT, CUT_TEXT, WAIT_TEXT = range(3)


class Controls(NamedTuple):
    """What was asked for each sequence; a pytree of int32 arrays that no step changes.

    How the modes differ (details in `step`):

    * STRICT: thinking_budget bounds all thinking tokens, Waits included, over all rounds.
    * S1_README: the loop of s1's README. The budget counts the model's tokens of all rounds and the
      ends that were suppressed, not the Waits; nothing is written when thinking ends. Equal in ids:
      the original pastes text, whose tokens may melt together at a seam.
    * S1_HARNESS: the loop behind the paper's figures (s1's lm-evaluation-harness). Every round has
      a fresh budget; all rounds together, Waits included, are cut to one budget. Its defects are
      not repeated: a crash where an empty text is cut; up to num_waits + 1 budgets of thinking, of
      which it grades what the answer never saw; prompts cut at their head to fit the context.

    mode: STRICT, S1_README or S1_HARNESS
    thinking_budget, max_answer_tokens: tokens; UNLIMITED for as many as the context holds
    min_thinking: tokens before the model may end its thinking
    num_waits: how many ends are answered with a Wait
    num_strings: wait strings, used in turn; at least 1
    max_new_tokens: tokens that the context holds behind the prompt; 0 is an empty slot, DONE from the start
    reserved_tokens: of these, kept free for the CUT_TEXT and a least answer; thinking never enters it
    last: the prompt's last token
    ends_BEL: token sequences that end thinking, each against the right edge, NONE before it
    resume_BE: token of CLOSE_TEXT that follows an end which is kept; NONE: CLOSE_TEXT replaces it
    stops_BSL: token sequences that end the answer, as ends_BEL
    reopen_B1L: token sequence in the answer that begins thinking anew, as ends_BEL
    text_BKT: what can be written, against the left edge: CLOSE_TEXT after an end of the model's,
        CUT_TEXT (line break, close, answer_prefix) where thinking is cut short, then the wait strings
    length_BK: tokens of each text
    close_at, answer_prefix_at: where in CUT_TEXT the close and the answer_prefix begin
    """

    mode: Any
    thinking_budget: Any
    min_thinking: Any
    num_waits: Any
    num_strings: Any
    max_answer_tokens: Any
    max_new_tokens: Any
    reserved_tokens: Any
    last: Any
    ends_BEL: Any
    resume_BE: Any
    stops_BSL: Any
    reopen_B1L: Any
    text_BKT: Any
    length_BK: Any
    close_at: Any
    answer_prefix_at: Any


class State(NamedTuple):
    """Where each sequence stands; a pytree of int32 arrays.

    phase: THINK, INJECT (a text is being written), ANSWER or DONE
    thinking_used: tokens that count against thinking_budget, over all rounds
    waits_left: ends that will still be answered with a Wait
    inject_text, inject_cursor: the text being written (row of text_BKT), and its next token
    answer_used: tokens of the answer, without close and answer_prefix, with the stop
    position: tokens behind the prompt
    last: the newest token
    recent_BH: the model's own newest tokens in this phase, H = L - 1, NONE before the first
    kind: what the newest token is: THINKING, WAIT, CLOSE, ANSWER_PREFIX, ANSWERING, or PASSED after the end
    ended_by: why thinking ended last: OPEN, BY_MODEL, BY_BUDGET, BY_CONTEXT
    finish: why the sequence ended: RUNNING, STOP, LENGTH
    """

    phase: Any
    thinking_used: Any
    waits_left: Any
    inject_text: Any
    inject_cursor: Any
    answer_used: Any
    position: Any
    last: Any
    recent_BH: Any
    kind: Any
    ended_by: Any
    finish: Any


class Intervention(NamedTuple):
    """One text that the controller wrote.

    position: of its first forced token, counted from the first token behind the prompt
    kind: wait, close or answer_prefix
    string: which wait string; None for the others
    """

    position: int
    kind: str
    string: int | None


def init(controls: Controls, is_newline_V: jax.Array) -> State:
    """The state behind the prompt, before the first token. A budget of 0 closes at once."""
    zero = jnp.zeros_like(controls.mode)
    batch, _, longest = controls.ends_BEL.shape
    state = State(
        phase=jnp.where(controls.max_new_tokens > 0, zero + THINK, DONE),
        thinking_used=zero,
        waits_left=controls.num_waits,
        inject_text=zero,
        inject_cursor=zero,
        answer_used=zero,
        position=zero,
        last=controls.last,
        recent_BH=jnp.full((batch, longest - 1), NONE, jnp.int32),
        kind=zero + PASSED,
        ended_by=zero + OPEN,
        finish=jnp.where(controls.max_new_tokens > 0, zero + RUNNING, LENGTH),
    )
    return _cut_where_used_up(controls, is_newline_V, state)


def forbidden(controls: Controls, state: State) -> jax.Array:
    """Ids that a sequence may not get now, because its thinking may not end yet.

    Ends are forbidden before min_thinking, and as the model's first token after a Wait (s1 asks for
    one token a round). Of an end of several tokens only the one that would complete it is.

    Returns:
        int32 [B, E], NEVER where nothing is forbidden. To apply:
        `logits_BV.at[jnp.arange(B)[:, None], ids_BE].set(-jnp.inf, mode="drop")`.
    """
    too_early = state.thinking_used < controls.min_thinking
    gated = (state.phase == THINK) & (too_early | (state.kind == WAIT))
    begun_BE = _fits(controls.ends_BEL[..., :-1], state.recent_BH)
    last_BE = controls.ends_BEL[..., -1]
    return jnp.where(gated[:, None] & begun_BE & (last_BE != NONE), last_BE, NEVER)


def step(
    controls: Controls, is_newline_V: jax.Array, state: State, sampled_B: jax.Array
) -> tuple[State, jax.Array, jax.Array]:
    """Decide the next token of every sequence.

    Within a step: the gate (`forbidden`), an end or a stop, the context, the budget, in this order;
    so an end on the budget's last token is still an end. An end that was sampled although
    forbidden is treated as any end.

    * An end of thinking becomes a Wait while waits are left and it fits: STRICT, the whole Wait and
      one more token within the budget; S1_README, any budget is left after counting the end;
      always, the Wait and one more token before the reserved_tokens. A Wait that does not fit is not put
      off: thinking ends there (`ended_by` BY_MODEL with `waits_left` above 0 says so).
    * Otherwise an end is followed by the rest of CLOSE_TEXT. Tokens of the model that already are
      its beginning stay and are not forced; any other end (EOS) is replaced. Under S1_README the
      token stays, as the first of the answer: what greedy decoding would choose again.
    * When the budget or the max_new_tokens before the reserved_tokens is used up, CUT_TEXT is written, with its line
      break unless the text ends in one. S1_HARNESS, where only the rounds' sum reaches the budget,
      waits for one more choice: an end with no Wait left gives CLOSE_TEXT. A Wait is cut there too.
      The original generates on beyond that sum, throws the surplus away and lets its ending choose
      the close; that is the one thing not reproduced.
    * Tokens that turn out to begin an end of several tokens have been counted as thinking, and stay
      when a Wait or a close replaces the last of them.
    * `reopen` in the answer starts to count again where the count stood; it is part of the answer.
    * The stop of an answer is its last token and counts against max_answer_tokens.

    Args:
        controls: what was asked
        state: from `init` or the step before
        sampled_B: int32, the model's choices; ignored in the phases INJECT and DONE

    Returns:
        the new state; token_B, the tokens to commit (the choice itself, to be ignored, where a
        sequence was DONE); forced_B, bool, true for tokens written regardless of the choice.
    """
    state, keep_B = _react(controls, is_newline_V, state, sampled_B)
    injecting = state.phase == INJECT
    forced_B = injecting & ~keep_B
    text_BT = _row(controls.text_BKT, state.inject_text)
    token_B = jnp.where(forced_B, _row(text_BT, state.inject_cursor), sampled_B)
    return _advance(controls, is_newline_V, state, token_B), token_B, forced_B


def interventions(
    kind_N: Sequence[int], forced_N: Sequence[bool], wait_lengths: Sequence[int]
) -> list[Intervention]:
    """The log of one sequence, on the host.

    Args:
        kind_N: `state.kind` after each step
        forced_N: `forced_B` of each step
        wait_lengths: tokens of each wait string
    """
    log: list[Intervention] = []
    waits = 0
    wait_ends = 0
    before = PASSED
    for position, (kind, forced) in enumerate(zip(kind_N, forced_N, strict=True)):
        if kind == WAIT and (before != WAIT or position == wait_ends):
            string = waits % len(wait_lengths)
            wait_ends = position + wait_lengths[string]
            waits += 1
            log.append(Intervention(position, "wait", string))
        elif kind in (CLOSE, ANSWER_PREFIX) and forced and before != kind:
            log.append(Intervention(position, "close" if kind == CLOSE else "answer_prefix", None))
        # a close that the model began is logged where the controller takes over
        before = kind if forced else PASSED
    return log


def _react(
    controls: Controls, is_newline_V: jax.Array, state: State, sampled_B: jax.Array
) -> tuple[State, jax.Array]:
    """What the choice leads to: the state in which the token is written, and whether it stays."""
    thinking = state.phase == THINK
    end_BE = thinking[:, None] & _matches(controls.ends_BEL, _window(state, sampled_B))
    ends = end_BE.any(axis=1)
    full = thinking & (controls.mode == S1_HARNESS) & _used_up(controls, state.thinking_used)
    waits = ends & ~full & _wait_fits(controls, state)
    closes = ends & ~waits & (~full | (state.waits_left == 0))
    state = _cut(controls, is_newline_V, state, full & ~closes, BY_BUDGET)

    resume = _row(controls.resume_BE, end_BE.argmax(axis=1))
    keep = closes & (resume != NONE)
    nothing = controls.length_BK[:, CLOSE_TEXT] == 0
    phase = jnp.where(closes & nothing, ANSWER, jnp.where(waits | closes, INJECT, state.phase))
    text = jnp.where(waits, _wait_row(controls, state), state.inject_text)
    begin = jnp.where(keep, resume - 1, 0)
    # under S1_README the suppressed end counts, as it does in the length of vLLM's output
    counted = waits & (controls.mode == S1_README)
    state = state._replace(
        phase=phase,
        inject_text=jnp.where(closes, CLOSE_TEXT, text),
        inject_cursor=jnp.where(waits | closes, begin, state.inject_cursor),
        thinking_used=state.thinking_used + counted,
        waits_left=state.waits_left - waits,
        ended_by=jnp.where(closes, BY_MODEL, state.ended_by),
    )
    return state, keep


def _advance(
    controls: Controls, is_newline_V: jax.Array, state: State, token_B: jax.Array
) -> State:
    """Commit the tokens: count them, and move on where a text, a phase or a sequence is over."""
    before = state.phase
    kind = _kind(controls, state)
    waited, answered = kind == WAIT, kind == ANSWERING
    window_BL = _window(state, token_B)
    counted = (kind == THINKING) | (waited & (controls.mode != S1_README))
    state = state._replace(
        thinking_used=state.thinking_used + counted,
        inject_cursor=state.inject_cursor + (before == INJECT),
        answer_used=state.answer_used + answered,
        position=state.position + (before != DONE),
        last=jnp.where(before == DONE, state.last, token_B),
        kind=kind,
    )
    whole = state.inject_cursor >= _row(controls.length_BK, state.inject_text)
    cut_short = (controls.mode == S1_HARNESS) & _used_up(controls, state.thinking_used)
    reopened = answered & _matches(controls.reopen_B1L, window_BL)[:, 0]
    phase = jnp.where((waited & (whole | cut_short)) | reopened, THINK, before)
    phase = jnp.where((before == INJECT) & ~waited & whole, ANSWER, phase)

    stopped = answered & _matches(controls.stops_BSL, window_BL).any(axis=1)
    long = (
        answered
        & (controls.max_answer_tokens >= 0)
        & (state.answer_used >= controls.max_answer_tokens)
    )
    long = long | (state.position >= controls.max_new_tokens)
    over = (before != DONE) & (stopped | long)
    finish = jnp.where(over, jnp.where(stopped, STOP, LENGTH), state.finish)
    state = state._replace(phase=jnp.where(over, DONE, phase), finish=finish)

    state = _cut_where_used_up(controls, is_newline_V, state)
    same_phase = state.phase == before
    return state._replace(recent_BH=jnp.where(same_phase[:, None], window_BL[:, 1:], NONE))


def _kind(controls: Controls, state: State) -> jax.Array:
    """What the token is that is written in this state."""
    answer_prefix = (state.inject_text == CUT_TEXT) & (
        state.inject_cursor >= controls.answer_prefix_at
    )
    injected = jnp.where(
        state.inject_text >= WAIT_TEXT, WAIT, jnp.where(answer_prefix, ANSWER_PREFIX, CLOSE)
    )
    own = jnp.where(state.phase == THINK, THINKING, ANSWERING)
    kind = jnp.where(state.phase == INJECT, injected, own)
    return jnp.where(state.phase == DONE, PASSED, kind).astype(jnp.int32)


def _cut_where_used_up(controls: Controls, is_newline_V: jax.Array, state: State) -> State:
    """Cut thinking whose budget, or max_new_tokens before the reserved_tokens, has no token left."""
    # in S1_HARNESS a round's fresh budget outlasts what its predecessors left of the sum
    only_the_sum = (controls.mode == S1_HARNESS) & (state.waits_left < controls.num_waits)
    budget = _used_up(controls, state.thinking_used) & ~only_the_sum
    context = state.position >= controls.max_new_tokens - controls.reserved_tokens
    over = (state.phase == THINK) & (budget | context)
    return _cut(controls, is_newline_V, state, over, jnp.where(budget, BY_BUDGET, BY_CONTEXT))


def _cut(
    controls: Controls, is_newline_V: jax.Array, state: State, where: jax.Array, reason: Any
) -> State:
    """Begin CUT_TEXT; where there is none, the answer."""
    nothing = controls.length_BK[:, CUT_TEXT] == 0
    begin = jnp.where(is_newline_V[state.last], controls.close_at, 0)
    return state._replace(
        phase=jnp.where(where, jnp.where(nothing, ANSWER, INJECT), state.phase),
        inject_text=jnp.where(where, CUT_TEXT, state.inject_text),
        inject_cursor=jnp.where(where, begin, state.inject_cursor),
        ended_by=jnp.where(where, reason, state.ended_by),
    )


def _used_up(controls: Controls, used: jax.Array) -> jax.Array:
    return (controls.thinking_budget >= 0) & (used >= controls.thinking_budget)


def _wait_row(controls: Controls, state: State) -> jax.Array:
    return WAIT_TEXT + (controls.num_waits - state.waits_left) % controls.num_strings


def _wait_fits(controls: Controls, state: State) -> jax.Array:
    """A Wait is left, and there is max_new_tokens for it and one token of the model's."""
    more = _row(controls.length_BK, _wait_row(controls, state)) + 1
    needed = jnp.select([controls.mode == STRICT, controls.mode == S1_README], [more, 2], 0)
    left = controls.thinking_budget - state.thinking_used
    budget = (controls.thinking_budget < 0) | (left >= needed)
    context = state.position + more <= controls.max_new_tokens - controls.reserved_tokens
    return (state.waits_left > 0) & budget & context


def _window(state: State, token_B: jax.Array) -> jax.Array:
    """The newest L tokens, the given one last."""
    return jnp.concatenate([state.recent_BH, token_B[:, None]], axis=1)


def _matches(sequences_BEL: jax.Array, window_BL: jax.Array) -> jax.Array:
    """Which sequences the window ends with; a sequence of NONE only is not there."""
    return _fits(sequences_BEL, window_BL) & (sequences_BEL[..., -1] != NONE)


def _fits(sequences_BEL: jax.Array, window_BL: jax.Array) -> jax.Array:
    """Which sequences equal the window where they are not NONE."""
    return ((sequences_BEL == NONE) | (sequences_BEL == window_BL[:, None, :])).all(axis=-1)


def _row(table_BK: jax.Array, index_B: jax.Array) -> jax.Array:
    """table_BK[b, index_B[b]] for every b."""
    return table_BK[jnp.arange(table_BK.shape[0]), index_B]
