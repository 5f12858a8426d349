"""Budget forcing: which token a sequence really gets, decided inside the compiled loop.

A completion thinks, then answers. `step` looks at the token that was sampled and either keeps it or
writes another: a Wait if the model would stop thinking too early, the end of thinking and an answer
prefix if its budget is used up (s1, arXiv 2501.19393, section 3.1). That happens before the token
reaches the sequence and the KV cache; only S1_HARNESS sets rows back. The module knows token ids:
no text, no model, no logits. Everything in it is pure and runs under jit; the loop around it is

    state = init(controls, is_newline_V)
    sampled_B = ...        # from logits in which `forbidden(controls, state)` are -inf
    state, token_B, forced_B = step(controls, is_newline_V, state, sampled_B)

until every `state.phase` is DONE. The host keeps `token_B`, `forced_B` and `state.kind` of every
step: kinds split a completion into thinking, close, answer prefix and answer (see `outputs`).

Letters: B sequences, E ends of thinking, S stops of the answer, L tokens of the longest of these,
K texts that can be inserted, T tokens of the longest, V ids.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxs1.decoding.matching import NEVER as NEVER
from jaxs1.decoding.matching import NONE, completing, matches, pick

#: Rows of `Controls.text_BKT`; the wait strings follow.
CLOSE_TEXT, CUT_TEXT, CALL_TEXT, WAIT_TEXT = range(4)


class Mode(IntEnum):
    """Rules of budget forcing; see `Controls`."""

    STRICT = 0
    S1_README = 1
    S1_HARNESS = 2


class Phase(IntEnum):
    """Phase of a sequence; INJECT: the controller is inserting a text."""

    THINK = 0
    INJECT = 1
    ANSWER = 2
    DONE = 3


class TokenKind(IntEnum):
    """Kind of a token; PAD: no token, the sequence was DONE; SURPLUS: not kept, see `step`."""

    PAD = 0
    THINKING = 1
    WAIT = 2
    CLOSE = 3
    ANSWER_PREFIX = 4
    ANSWER = 5
    SURPLUS = 6


class EndedBy(IntEnum):
    """Why thinking ended last; OPEN: it has not ended."""

    OPEN = 0
    MODEL = 1
    BUDGET = 2
    CONTEXT = 3


class Finish(IntEnum):
    """Why a sequence ended: a stop of the answer, or its length (max_answer_tokens, context)."""

    RUNNING = 0
    STOP = 1
    LENGTH = 2


class Controls(NamedTuple):
    """Settings of each sequence; a pytree of int32 arrays that no step changes.

    The modes differ as follows (details in `step`):

    * STRICT: thinking_budget bounds all thinking tokens, Waits included, over all rounds.
    * S1_README: the loop of s1's README. The budget counts the model's tokens of all rounds and the
      suppressed ends, not the Waits; nothing is inserted when thinking ends. Equal in ids: the
      original concatenates text, whose tokens may merge at a seam.
    * S1_HARNESS: the loop behind the paper's figures (s1's lm-evaluation-harness). Every round has
      a fresh budget; all rounds together, Waits included, are cut to one. Not reproduced: a crash
      when an empty text is cut; grading of what is cut off; prompts truncated on the left.

    Args:
        mode: [B], a `Mode`
        thinking_budget: [B], maximum thinking tokens; -1: limited only by the context
        min_thinking: [B], tokens before the model may end its thinking
        num_waits: [B], number of ends that are replaced by a Wait
        num_strings: [B], number of wait strings, used in turn; at least 1
        max_answer_tokens: [B], maximum answer tokens; -1: limited only by the context
        max_new_tokens: [B], maximum tokens after the prompt; 0: an empty row, DONE from the start
        reserved_tokens: [B], those of max_new_tokens that thinking leaves for CUT_TEXT and a
            minimal answer
        last: [B], last token of the prompt
        ends_BEL: token sequences that end thinking, right-aligned, padded with NONE
        resume_BE: token of CLOSE_TEXT that follows an end which is kept; NONE: the text of the end
            replaces it
        end_text_BE: text of each end, CLOSE_TEXT or CALL_TEXT
        stops_BSL: token sequences that end the answer, as ends_BEL
        reopen_B1L: token sequence in the answer that begins thinking again, as ends_BEL
        text_BKT: texts to insert, left-aligned: CLOSE_TEXT after an end of the model's own,
            CUT_TEXT (line break, close, answer prefix) to cut thinking short, CALL_TEXT (close,
            beginning of a call) after an end that calls a tool, then the wait strings
        length_BK: tokens of each text
        close_at: [B], position of the close in CUT_TEXT
        answer_prefix_at: [B], position of the answer prefix in CUT_TEXT
        answer_at_BK: position of the answer in each text, which may begin it; not in wait strings
    """

    mode: jax.Array
    thinking_budget: jax.Array
    min_thinking: jax.Array
    num_waits: jax.Array
    num_strings: jax.Array
    max_answer_tokens: jax.Array
    max_new_tokens: jax.Array
    reserved_tokens: jax.Array
    last: jax.Array
    ends_BEL: jax.Array
    resume_BE: jax.Array
    end_text_BE: jax.Array
    stops_BSL: jax.Array
    reopen_B1L: jax.Array
    text_BKT: jax.Array
    length_BK: jax.Array
    close_at: jax.Array
    answer_prefix_at: jax.Array
    answer_at_BK: jax.Array


class State(NamedTuple):
    """State of each sequence; a pytree of int32 arrays.

    Args:
        phase: [B], a `Phase`
        thinking_used: [B], tokens that count against thinking_budget, over all rounds
        round_used: [B], the model's own tokens since the last Wait
        surplus: [B], tokens that were discarded, or will be
        waits_left: [B], ends that will still be replaced by a Wait
        inject_text: [B], row of text_BKT that is being inserted
        inject_cursor: [B], its next token
        answer_used: [B], tokens of the answer, without close and answer prefix, with the stop
            and what the controller writes of it
        position: [B], tokens after the prompt that are kept
        last: [B], newest token that is kept
        recent_BH: the model's own newest tokens in this phase, H = L - 1, padded with NONE
        kind: [B], `TokenKind` of the newest token
        ended_by: [B], an `EndedBy`
        finish: [B], a `Finish`
    """

    phase: jax.Array
    thinking_used: jax.Array
    round_used: jax.Array
    surplus: jax.Array
    waits_left: jax.Array
    inject_text: jax.Array
    inject_cursor: jax.Array
    answer_used: jax.Array
    position: jax.Array
    last: jax.Array
    recent_BH: jax.Array
    kind: jax.Array
    ended_by: jax.Array
    finish: jax.Array


def init(controls: Controls, is_newline_V: jax.Array) -> State:
    """The state after the prompt; a budget of 0 closes at once. Arguments as in `step`."""
    zero = jnp.zeros_like(controls.mode)
    batch, _, longest = controls.ends_BEL.shape
    state = State(
        phase=jnp.where(controls.max_new_tokens > 0, zero + Phase.THINK, Phase.DONE),
        thinking_used=zero,
        round_used=zero,
        surplus=zero,
        waits_left=controls.num_waits,
        inject_text=zero,
        inject_cursor=zero,
        answer_used=zero,
        position=zero,
        last=controls.last,
        recent_BH=jnp.full((batch, longest - 1), NONE, jnp.int32),
        kind=zero + TokenKind.PAD,
        ended_by=zero + EndedBy.OPEN,
        finish=jnp.where(controls.max_new_tokens > 0, zero + Finish.RUNNING, Finish.LENGTH),
    )
    return cut_where_used_up(controls, is_newline_V, state)


def forbidden(controls: Controls, state: State) -> jax.Array:
    """Ids that must not be sampled now, because thinking may not end yet.

    Ends are forbidden before min_thinking, and as the model's first token after a Wait (s1 requires
    one token per round). Of an end of several tokens, only the token that completes it is.

    Returns:
        int32 [B, E], NEVER where nothing is forbidden. To apply:
        `logits_BV.at[jnp.arange(B)[:, None], ids_BE].set(-jnp.inf, mode="drop")`
    """
    too_early = state.thinking_used < controls.min_thinking
    waited = (state.kind == TokenKind.SURPLUS) & (state.round_used == 0)
    waited |= state.kind == TokenKind.WAIT
    gated = (state.phase == Phase.THINK) & (too_early | waited)
    return completing(controls.ends_BEL, state.recent_BH, gated)


def forbidden_stops(controls: Controls, state: State, min_tokens_B: jax.Array) -> jax.Array:
    """Ids that must not be sampled now, because the completion has too few tokens to end."""
    too_early = (state.phase == Phase.ANSWER) & (state.position < min_tokens_B)
    return completing(controls.stops_BSL, state.recent_BH, too_early)


def step(
    controls: Controls, is_newline_V: jax.Array, state: State, sampled_B: jax.Array
) -> tuple[State, jax.Array, jax.Array]:
    """Decide the next token of every sequence.

    A step checks for an end or a stop, then the context, then the budget: an end on the budget's
    last token still counts as an end. An end sampled although forbidden is treated like any other.

    The end of thinking:

    * It becomes a Wait while Waits are left and this one fits. STRICT: the complete Wait and one
      more token are within the budget. S1_README: some budget is left after counting the end.
      Always: the Wait and one more token fit before reserved_tokens. A Wait that does not fit is
      not postponed: thinking ends there (`ended_by` is MODEL with `waits_left` above 0).
    * Otherwise the rest of CLOSE_TEXT follows. Tokens of the model that already begin it are kept
      and not forced; any other end (EOS) is replaced. The end that calls a tool is replaced by
      CALL_TEXT, which repeats it behind the close. Under S1_README the token is kept as the
      first of the answer, as greedy decoding would sample it again.
    * Tokens that turn out to begin an end of several tokens have been counted as thinking, and stay
      if a Wait or a close replaces the last of them.

    The end of the budget, or of max_new_tokens before reserved_tokens:

    * CUT_TEXT is inserted, without its line break if the text ends in one.
    * S1_HARNESS continues if only the sum of the rounds reaches the budget: how the last round ends
      chooses between CLOSE_TEXT and CUT_TEXT, which then follows the last token within the budget.
      All between is SURPLUS: `position` and `last` stay, and the caller sets its cache back.

    The answer: `reopen` begins thinking again; its tokens belong to the answer, and the thinking
    count continues. The stop is the answer's last token and counts against max_answer_tokens.

    Args:
        controls: settings
        is_newline_V: bool, ids whose text ends in a line break
        state: from `init` or the previous step
        sampled_B: int32, sampled ids; ignored in the phases INJECT and DONE

    Returns:
        the new state; token_B, the tokens to commit (the sampled ids, to be ignored, where a
        sequence was DONE); forced_B, bool, true for tokens written regardless of the sampled id
    """
    keep_B, state = _react(controls, state, sampled_B)
    forced_B = (state.phase == Phase.INJECT) & ~keep_B
    text_BT = pick(controls.text_BKT, state.inject_text)
    token_B = jnp.where(forced_B, pick(text_BT, state.inject_cursor), sampled_B)
    return _advance(controls, is_newline_V, state, token_B), token_B, forced_B


def _react(controls: Controls, state: State, sampled_B: jax.Array) -> tuple[jax.Array, State]:
    """Respond to the sampled ids: which of them are kept, and the state in which to write."""
    thinking = state.phase == Phase.THINK
    end_BE = thinking[:, None] & matches(controls.ends_BEL, _window(state, sampled_B))
    ends = end_BE.any(axis=1)
    waits = ends & _waitfits(controls, state)
    closes = ends & ~waits
    which = end_BE.argmax(axis=1)
    resume, end_text = pick(controls.resume_BE, which), pick(controls.end_text_BE, which)
    # the end of a surplus is not the model's choice at the place of the close
    keep = closes & (resume != NONE) & (state.surplus == 0)
    nothing = pick(controls.length_BK, end_text) == 0
    phase = jnp.where(waits | closes, Phase.INJECT, state.phase)
    phase = jnp.where(closes & nothing, Phase.ANSWER, phase)
    text = jnp.where(waits, _wait_row(controls, state), state.inject_text)
    begin = jnp.where(keep, resume - 1, 0)
    # under S1_README the suppressed end counts, as it does in the length of vLLM's output
    counted = waits & (controls.mode == Mode.S1_README)
    return keep, state._replace(
        phase=phase,
        inject_text=jnp.where(closes, end_text, text),
        inject_cursor=jnp.where(waits | closes, begin, state.inject_cursor),
        thinking_used=state.thinking_used + counted,
        waits_left=state.waits_left - waits,
        ended_by=jnp.where(closes, EndedBy.MODEL, state.ended_by),
    )


def _advance(
    controls: Controls, is_newline_V: jax.Array, state: State, token_B: jax.Array
) -> State:
    """Commit the tokens: count them, and end texts, phases and sequences."""
    before = state.phase
    kind = _kind(controls, state)
    thought, waited = kind == TokenKind.THINKING, kind == TokenKind.WAIT
    answered, said = kind == TokenKind.ANSWER, before == Phase.ANSWER
    window_BL = _window(state, token_B)
    counted = thought | (waited & (controls.mode != Mode.S1_README))
    used_up = _reached(controls.thinking_budget, state.thinking_used)
    surplus = counted & used_up & (controls.mode == Mode.S1_HARNESS)
    state = state._replace(
        thinking_used=state.thinking_used + (counted & ~surplus),
        round_used=jnp.where(waited, 0, state.round_used + thought),
        surplus=state.surplus + surplus,
        inject_cursor=state.inject_cursor + (before == Phase.INJECT),
        answer_used=state.answer_used + answered,
        position=state.position + ((before != Phase.DONE) & ~surplus),
        last=jnp.where((before == Phase.DONE) | surplus, state.last, token_B),
        kind=jnp.where(surplus, TokenKind.SURPLUS, kind),
    )
    complete = state.inject_cursor >= pick(controls.length_BK, state.inject_text)
    reopened = said & matches(controls.reopen_B1L, window_BL)[:, 0]
    phase = jnp.where((waited & complete) | reopened, Phase.THINK, before)
    phase = jnp.where((before == Phase.INJECT) & ~waited & complete, Phase.ANSWER, phase)

    stopped = said & matches(controls.stops_BSL, window_BL).any(axis=1)
    long = answered & _reached(controls.max_answer_tokens, state.answer_used)
    long = long | (state.position >= controls.max_new_tokens)
    over = (before != Phase.DONE) & (stopped | long)
    finish = jnp.where(over, jnp.where(stopped, Finish.STOP, Finish.LENGTH), state.finish)
    state = state._replace(phase=jnp.where(over, Phase.DONE, phase), finish=finish)

    state = cut_where_used_up(controls, is_newline_V, state)
    same_B1 = (state.phase == before)[:, None]
    return state._replace(recent_BH=jnp.where(same_B1, window_BL[:, 1:], NONE))


def _kind(controls: Controls, state: State) -> jax.Array:
    """The kind of the token that is written in this state."""
    phase, text = state.phase, state.inject_text
    is_prefix = (text == CUT_TEXT) & (state.inject_cursor >= controls.answer_prefix_at)
    kind = jnp.where(is_prefix, TokenKind.ANSWER_PREFIX, TokenKind.CLOSE)
    is_answer = state.inject_cursor >= pick(controls.answer_at_BK, text)
    kind = jnp.where(is_answer, TokenKind.ANSWER, kind)
    kind = jnp.where(text >= WAIT_TEXT, TokenKind.WAIT, kind)
    kind = jnp.where(phase == Phase.THINK, TokenKind.THINKING, kind)
    kind = jnp.where(phase == Phase.ANSWER, TokenKind.ANSWER, kind)
    return jnp.where(phase == Phase.DONE, TokenKind.PAD, kind).astype(jnp.int32)


def cut_where_used_up(controls: Controls, is_newline_V: jax.Array, state: State) -> State:
    """Cut thinking that has no token left: CUT_TEXT begins, or the answer if that is empty."""
    is_harness = controls.mode == Mode.S1_HARNESS
    used = jnp.where(is_harness, state.round_used, state.thinking_used)
    budget = _reached(controls.thinking_budget, used)
    context = state.position + state.surplus >= _room(controls)
    over = (state.phase == Phase.THINK) & (budget | context)
    reason = jnp.where(budget | (state.surplus > 0), EndedBy.BUDGET, EndedBy.CONTEXT)
    nothing = controls.length_BK[:, CUT_TEXT] == 0
    begin = jnp.where(is_newline_V[state.last], controls.close_at, 0)
    return state._replace(
        phase=jnp.where(over, jnp.where(nothing, Phase.ANSWER, Phase.INJECT), state.phase),
        inject_text=jnp.where(over, CUT_TEXT, state.inject_text),
        inject_cursor=jnp.where(over, begin, state.inject_cursor),
        ended_by=jnp.where(over, reason, state.ended_by),
    )


def _room(controls: Controls) -> jax.Array:
    """Tokens after the prompt that thinking can fill; a surplus may fill reserved_tokens."""
    cut_back = (controls.mode == Mode.S1_HARNESS) & (controls.thinking_budget >= 0)
    return controls.max_new_tokens - jnp.where(cut_back, 0, controls.reserved_tokens)


def _reached(limit: jax.Array, used: jax.Array) -> jax.Array:
    return (limit >= 0) & (used >= limit)


def _wait_row(controls: Controls, state: State) -> jax.Array:
    return WAIT_TEXT + (controls.num_waits - state.waits_left) % controls.num_strings


def _waitfits(controls: Controls, state: State) -> jax.Array:
    """Whether a Wait is left, and it fits together with one token of the model's."""
    more = pick(controls.length_BK, _wait_row(controls, state)) + 1
    needed = jnp.where(controls.mode == Mode.STRICT, more, 0)
    needed = jnp.where(controls.mode == Mode.S1_README, 2, needed)
    left = controls.thinking_budget - state.thinking_used
    budget = (controls.thinking_budget < 0) | (left >= needed)
    context = state.position + state.surplus + more <= _room(controls)
    return (state.waits_left > 0) & budget & context


def _window(state: State, token_B: jax.Array) -> jax.Array:
    """The newest L tokens, this one last."""
    return jnp.concatenate([state.recent_BH, token_B[:, None]], axis=1)
