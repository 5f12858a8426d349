"""Choices and their log-probabilities are those of the complete forward pass, whoever asks.

The forward pass is that of training, in float32; which ids were forbidden, and which choices were
lost or replaced, comes from the plain-Python oracle, which replays every sequence.
"""

import collections
import dataclasses
import json
import random

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from convert.weights import load_params, open_weights
from jaxs1.decoding.buckets import ladder
from jaxs1.decoding.budget import NONE
from jaxs1.decoding.decode_state import empty_rows
from jaxs1.decoding.engine import Engine
from jaxs1.decoding.params import Request, SamplingParams, ThinkingParams
from jaxs1.decoding.sampling import SamplingFlags, keep_likely, sample
from jaxs1.decoding.tokenized_thinking import tokenize_thinking
from jaxs1.model import transformer
from tests.decoding.cases import KINDS
from tests.decoding.engines import LIMITS, complete_all, encode, open_tiny, tokenizer, write_model
from tests.decoding.oracle import Oracle
from tests.decoding.test_forcing import case_of, logits_of
from tests.decoding.test_sampling import ALL, ROWS, random_logits, sampling_of
from tests.numerics import TOLERANCE
from tests.tiny_models import FLOAT32, one_device

REQUESTS = 160
COLUMNS = ("choices", "logprobs", "gated", "kinds")


def random_request(rng):
    """Budgets, Waits, minimum and temperatures, all drawn on their own."""
    most = rng.choice([-1, 2, 5, 9, 16])
    thinking = ThinkingParams(
        max=most,
        min=rng.choice([0, 0, 1, 4]) if most < 0 else min(rng.choice([0, 2, 9]), most),
        num_waits=rng.choice([0, 1, 2]),
        wait_strings=rng.choice([("Wait",), ("\nAlternatively, let us", "Wait")]),
        answer_prefix=rng.choice([None, "\nFinal Answer:"]),
        max_answer_tokens=rng.choice([1, 3, 8]),
        min_answer_tokens=1,
    )
    sampling = SamplingParams(rng.choice([0.7, 1.0, 1.3]))
    prompt = [rng.randrange(4, len(tokenizer()) - 2) for _ in range(rng.choice([1, 3, 8]))]
    seed, wanted = rng.randrange(99), rng.random() < 0.8
    return Request(prompt, thinking, sampling, rng.choice([1, 2]), seed, logprobs=wanted)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """An engine on a model that likes to end its thinking, and the model."""
    folder = tmp_path_factory.mktemp("logprobs")
    texts = {"<|im_start|>": 3.0, "<|im_end|>": 2.4, "<|endoftext|>": 2.0, "\n": 2.5}
    write_model(folder, {encode(text)[0]: amount for text, amount in texts.items()})
    weights = open_weights(str(folder))
    shape = transformer.abstract(weights.architecture, FLOAT32, one_device())
    return open_tiny(folder), transformer.with_parameters(shape, load_params(weights, shape))


@pytest.fixture(scope="module")
def ran(tiny):
    """(request, completion) of every sequence of a batch in which some do not ask."""
    rng = random.Random(0)
    requests = [random_request(rng) for _ in range(REQUESTS)]
    done = complete_all(tiny[0], requests)
    return [(r, c) for r, completions in zip(requests, done, strict=True) for c in completions]


def forward(model, completion):
    """Logits of every token of a completion, [tokens, ids of the tokenizer]."""
    ids = completion.prompt_ids + completion.tokens
    row = np.zeros((1, LIMITS.max_seq_len), np.int32)
    row[0, : len(ids)] = ids
    start = len(completion.prompt_ids) - 1
    return logits_of(model, row)[0, start : start + len(completion.tokens)]


def replay(request, completion):
    """The oracle, fed with the choices; also the ids that were forbidden at each token."""
    tokenized = tokenize_thinking(request.thinking, tokenizer())
    oracle, banned = Oracle(case_of(request, tokenized, completion)), []
    for choice in completion.choices:
        banned.append(sorted(oracle.banned))
        oracle.choose(choice if choice != NONE else 0)
    return oracle, banned


def test_choices_are_what_the_oracle_turns_into_the_tokens(ran):
    seen = collections.Counter()
    for request, done in ran:
        if not request.logprobs:
            continue
        oracle, _ = replay(request, done)
        assert oracle.over
        assert (oracle.tokens, oracle.forced) == (done.tokens, done.forced)
        assert (oracle.choices, oracle.gated) == (done.choices, done.gated)
        assert oracle.kinds == [KINDS[kind] for kind in done.kinds]
        for token, choice, forced in zip(done.tokens, done.choices, done.forced, strict=True):
            assert forced or choice == token
            seen["lost" if choice == NONE else "replaced" if forced else "kept"] += 1
        seen["gated"] += sum(done.gated)
    assert min(seen[x] for x in ("lost", "replaced", "kept", "gated")) > 50, seen


def test_logprobs_are_those_of_the_whole_forward_pass(tiny, ran):
    _, model = tiny
    worst, compared = 0.0, collections.Counter()
    for request, done in ran:
        if not request.logprobs:
            continue
        logits_NV, (_, banned) = forward(model, done), replay(request, done)
        for n, choice in enumerate(done.choices):
            if choice == NONE:
                assert done.logprobs[n] == 0
                continue
            logits_V = logits_NV[n].astype(np.float64)
            logits_V[banned[n]] = -np.inf
            logprob = log_softmax(logits_V / request.sampling.temperature)[choice]
            worst = max(worst, abs(done.logprobs[n] - logprob))
            compared[request.sampling.temperature] += 1
    assert worst <= TOLERANCE["sampled log-probability = whole forward, absolute"], worst
    assert min(compared.values()) > 300 and len(compared) == 3, compared


def test_who_does_not_ask_gets_nothing_and_the_same_tokens(tiny, ran):
    """Same tokens as without any log-probabilities in the batch, and the JSON of before."""
    plain = {id(r): dataclasses.replace(r, logprobs=False) for r, _ in ran}
    done = dict(zip(plain, complete_all(tiny[0], list(plain.values())), strict=True))
    for request, mine in ran:
        other = done[id(request)][mine.index]
        assert mine.tokens == other.tokens
        assert not any(getattr(other, name) for name in COLUMNS)
        assert not set(COLUMNS) & set(other.as_json())
        if request.logprobs:
            assert {len(getattr(mine, name)) for name in COLUMNS} == {len(mine.tokens)}
            assert json.loads(json.dumps(mine.as_json()))["choices"] == mine.choices
        else:
            assert mine.as_json() == other.as_json()


@pytest.mark.parametrize("flags", [ALL, SamplingFlags(True, False, False)])
def test_logprobs_are_of_the_distribution_that_is_drawn_from(flags):
    """Filters renormalise; of a greedy row temperature 1, whatever its neighbours compile in."""
    rng = np.random.default_rng(0)
    logits_BV, sampling = random_logits(rng), sampling_of(rng, ROWS)
    sampling = sampling._replace(penalty=np.ones(ROWS, np.float32))
    answering_B, position_B = np.zeros(ROWS, bool), np.arange(ROWS)
    if not flags.filtered:
        ones, zeros = np.ones(ROWS, np.float32), np.zeros(ROWS, np.float32)
        sampling = sampling._replace(top_k=zeros.astype(np.int32), top_p=ones, min_p=zeros)
    draw = jax.jit(sample, static_argnums=4)
    wanted = flags._replace(logprobs=True)
    token_B, logprob_B = draw(logits_BV, sampling, answering_B, position_B, wanted)
    np.testing.assert_array_equal(
        token_B, draw(logits_BV, sampling, answering_B, position_B, flags)[0]
    )
    for b in range(ROWS):
        temperature, logits_V = sampling.temperature[b], logits_BV[b].astype(np.float64)
        if temperature:
            logits_V = logits_V / temperature
            settings = (sampling.top_k[b : b + 1], sampling.top_p[b : b + 1])
            kept_V = _kept(logits_V, *settings, sampling.min_p[b : b + 1])
            logits_V = np.where(kept_V, logits_V, -np.inf)
        expected = log_softmax(logits_V)[token_B[b]]
        assert abs(expected - logprob_B[b]) < 1e-5 * max(1, abs(expected))


def _kept(logits_V, top_k, top_p, min_p):
    kept = jax.jit(keep_likely)(logits_V[None].astype(np.float32), top_k, top_p, min_p)
    return np.isfinite(np.asarray(kept)[0])


def test_a_ladder_serves_logprobs_too():
    buckets = ladder(rows=4, pages=4, tokens=64)
    hot = SamplingFlags(sampled=True, filtered=True, penalised=False)
    assert not buckets.flags_for(hot).logprobs
    found = buckets.flags_for(hot._replace(logprobs=True))
    assert found.sampled and found.filtered and found.logprobs


def test_the_program_of_who_does_not_ask_has_no_columns(tiny):
    """Neither arrays nor a log-softmax: what the flag adds is not there without it."""
    engine, _ = tiny
    assert isinstance(engine, Engine)
    plain, scored = (lowered(engine, SamplingFlags(True, False, False, x)) for x in (False, True))
    assert len(jax.tree.leaves(plain.out_info)) + 3 == len(jax.tree.leaves(scored.out_info))
    assert plain.as_text().count("stablehlo.log ") == 0 < scored.as_text().count("stablehlo.log ")


def lowered(engine, flags):
    pages = engine.scheduler.max_pages
    rows = empty_rows(4, max_pages=pages, is_newline_V=engine.is_newline_V)
    return engine.compiled.decode_steps.lower(
        engine.params, engine.cache, rows, engine.is_newline_V, np.int32(8), np.bool_(False),
        rows=4, pages=pages, flags=flags,
    )  # fmt: skip
