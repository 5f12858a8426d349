"""Random requests in token ids, as `Case` for the oracle and as `Controls`, and what runs them."""

import functools

import jax
import jax.numpy as jnp

from jaxs1.decoding import budget
from jaxs1.decoding.controls import SIZES, build_controls, fit
from jaxs1.decoding.params import ThinkingParams
from jaxs1.decoding.tokenized_thinking import TokenizedThinking
from tests.decoding.oracle import Case, Oracle

VOCAB = 16
NEWLINES = {5}
KINDS = ["passed", "thinking", "wait", "close", "answer_prefix", "answer", "surplus"]
ENDED = [None, "model", "budget", "context"]
FINISH = [None, "stop", "length"]
#: name -> delimiters in ids, shaped like the presets'; the last two have ends of several tokens.
IS_NEWLINE = jnp.asarray([i in NEWLINES for i in range(VOCAB)])
DELIMITERS = {
    "s1": {"ends": [[6]], "close": [6, 7], "reopen": [6, 8]},
    "think_tags": {"ends": [[9]], "close": [9], "reopen": [10]},
    "two ends": {"ends": [[6], [9]], "close": [9, 7], "reopen": [10, 8]},
    "spelled": {
        "ends": [[11, 8, 12], [11, 8, 13], [15, 12]],
        "whole": [[11, 8, 13]],
        "close": [11, 8, 12],
        "reopen": [14, 8, 12],
    },
    "overlapping": {"ends": [[8, 9], [12]], "close": [12, 7], "reopen": [10, 8]},
}
WAITS = [[[10]], [[10, 0]], [[10], [0, 3, 5]], [[3, 5], [10], [11, 8]]]


def random_case(rng, mode=None):
    """One request; every edge of the design is among them."""
    mode = mode or rng.choice(["strict", "strict", "s1_readme", "s1_harness"])
    names = list(DELIMITERS) if mode == "strict" else ["s1", "think_tags", "two ends"]
    case = Case(mode=mode, newlines=NEWLINES, **DELIMITERS[rng.choice(names)])
    case.stops = [[1], [2]] + ([[3, 4]] if mode == "strict" and rng.random() < 0.3 else [])
    case.lead = rng.choice([[], [5]])
    case.answer_prefix = rng.choice([[], [3], [5, 3, 0]])
    case.waits = rng.choice(WAITS)
    case.last = rng.choice([0, 5, 8])
    case.thinking_budget = rng.choice([-1, 0, 1, 2, 3, 5, 8, 12])
    case.num_waits = rng.choice([0, 0, 1, 2, 3, 6])
    if mode == "s1_harness" and rng.random() < 0.2:  # rounds that together reach the budget
        case.thinking_budget, case.num_waits = rng.choice([3, 4, 5]), 1
    case.min_thinking = rng.choice([0, 0, 0, 1, 3, 7, case.thinking_budget])
    case.max_answer_tokens = rng.choice([-1, 1, 2, 4, 8])
    case.min_answer_tokens = rng.choice([1, 1, 3])
    if case.max_answer_tokens > 0:
        case.min_answer_tokens = min(case.min_answer_tokens, case.max_answer_tokens)
    if mode != "strict":
        case.reopen = []
    if mode == "s1_readme":
        case.lead, case.close, case.answer_prefix = [], [], []
    reserved_tokens = len(case.lead + case.close + case.answer_prefix) + case.min_answer_tokens
    case.max_new_tokens = reserved_tokens + rng.choice([0, 1, 2, 4, 7, 12, 30, 100])
    case.thinking_budget = min(case.thinking_budget, case.max_new_tokens - reserved_tokens)
    most = (
        case.max_new_tokens - reserved_tokens if case.thinking_budget < 0 else case.thinking_budget
    )
    case.min_thinking = max(0, min(case.min_thinking, most))
    return case


def random_stream(case, rng, length):
    """Choices of a model that likes what this case treats specially."""
    special = case.ends + case.ends + case.stops + 3 * case.calls + [case.reopen or [5]] + [[5]]
    special += [s[:-1] for s in case.ends if len(s) > 1]
    special += [case.reopen + case.ends[0][-1:]]  # with a tail that may look like an end
    eagerness = rng.choice([0.03, 0.15, 0.15, 0.4, 0.8])
    # parts of delimiters out of place, too
    usual = rng.choice([range(VOCAB), sorted({token for ids in special for token in ids} | {0, 7})])
    stream = []
    while len(stream) < length:
        stream += rng.choice(special) if rng.random() < eagerness else [rng.choice(usual)]
    return stream[:length]


def tokenized(case):
    """The same request for the code under test."""
    tuples = functools.partial(map, tuple)
    resume = []
    for end in case.ends:
        begins = case.close[: len(end)] == end
        resume.append(len(end) if begins else budget.NONE)
        if end in case.whole:
            resume[-1] = len(case.close)
    if case.mode == "s1_readme":
        resume = [budget.NONE] * len(case.ends)
    return TokenizedThinking(
        thinking=ThinkingParams(
            max=case.thinking_budget,
            min=case.min_thinking,
            num_waits=case.num_waits,
            mode=case.mode,
            max_answer_tokens=case.max_answer_tokens,
            min_answer_tokens=case.min_answer_tokens,
        ),
        start=(),
        ends=(*tuples(case.ends), *tuples(case.stops), *tuples(case.calls)),
        resume=(*resume, *[budget.NONE] * len(case.stops + case.calls)),
        stops=(*tuples(case.stops),),
        reopen=tuple(case.reopen),
        line_break=tuple(case.lead),
        close=tuple(case.close),
        answer_prefix=tuple(case.answer_prefix),
        waits=(*tuples(case.waits),),
        answer_start=tuple(case.start),
        call=tuple(case.calls[0]) if case.calls else (),
    )


def controls_of(cases):
    """All cases in one batch: the same context, prompts as long as their limits allow."""
    context = max(case.max_new_tokens for case in cases) + 1
    prompts = [[0] * (context - case.max_new_tokens - 1) + [case.last] for case in cases]
    thinking = [tokenized(case) for case in cases]
    limits = [fit(t, len(p), context) for t, p in zip(thinking, prompts, strict=True)]
    assert not any(limit.note for limit in limits)
    return build_controls(thinking, prompts, limits)


@functools.partial(jax.jit, static_argnames="obey")
def run(controls, stream_TB, obey=True):
    """The compiled loop: the last state; forbidden ids, tokens, forced, kinds of each step."""

    def one(state, offered_B):
        ids_BE = budget.forbidden(controls, state)
        sampled_B = offered_B
        for _ in range(SIZES.ends + 1 if obey else 0):
            banned = (ids_BE == sampled_B[:, None]).any(1)
            sampled_B = jnp.where(banned, (sampled_B + 1) % VOCAB, sampled_B)
        state, token_B, forced_B = budget.step(controls, IS_NEWLINE, state, sampled_B)
        return state, (ids_BE, token_B, forced_B, state.kind)

    return jax.lax.scan(one, budget.init(controls, IS_NEWLINE), stream_TB)


def play(case, stream, obey=True):
    """The oracle on the same choices; also the forbidden sets it saw."""
    oracle, banned = Oracle(case), []
    for token in stream:
        if oracle.over:
            break
        banned.append(oracle.banned)
        while obey and token in oracle.banned:
            token = (token + 1) % VOCAB
        oracle.choose(token)
    return oracle, banned
