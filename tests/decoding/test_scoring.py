"""Log-probabilities of given tokens are transformers', wherever prompts are cut."""

import random

import numpy as np
import pytest
import torch

from jaxs1 import LLM, UserError
from jaxs1.decoding.buckets import ladder
from jaxs1.decoding.params import Request, SamplingParams, ThinkingParams
from tests.decoding.engines import LIMITS, complete_all, open_tiny, tokenizer, write_model

#: Natural logarithms, float32 on both sides.
CLOSE = 1e-4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    return open_tiny(folder_with(folder), max_seq_len=192), MODELS[folder], folder


MODELS = {}


def folder_with(folder):
    MODELS[folder] = write_model(folder, context=256)
    return folder


def expected(model, prompt, following):
    with torch.no_grad():
        logits_TV = model(torch.tensor([[*prompt, *following]])).logits[0]
    logprobs_TV = torch.log_softmax(logits_TV.float(), -1)[len(prompt) - 1 : -1]
    own = [row[token].item() for row, token in zip(logprobs_TV, following, strict=True)]
    return own, logprobs_TV.argmax(-1).tolist()


def random_pairs(number, seed=1):
    rng = random.Random(seed)
    ids = range(len(tokenizer()))
    pairs = [
        (rng.choices(ids, k=rng.randint(1, 90)), rng.choices(ids, k=rng.randint(0, 70)))
        for _ in range(number)
    ]
    return [*pairs, ([5], [6]), ([5], [])]


def test_scores_are_those_of_transformers(tiny):
    engine, model, _ = tiny
    pairs = random_pairs(12)
    for (prompt, following), scores in zip(pairs, engine.score(pairs), strict=True):
        own, best = expected(model, prompt, following)
        np.testing.assert_allclose(scores.logprobs, own, atol=CLOSE, rtol=0)
        assert scores.best_ids == best
        assert scores.is_greedy == (following == best)


def test_greedy_tokens_are_greedy(tiny):
    engine, _, _ = tiny
    off = ThinkingParams(mode="off", max_answer_tokens=20)
    (done,) = complete_all(engine, [Request([5, 9, 7], off)])[0]
    (scores,) = engine.score([([5, 9, 7], done.answer_ids)])
    assert scores.is_greedy and scores.logprobs == scores.best_logprobs
    other = [*done.answer_ids[:-1], (done.answer_ids[-1] + 1) % len(tokenizer())]
    (worse,) = engine.score([([5, 9, 7], other)])
    assert not worse.is_greedy and worse.logprobs[:-1] == scores.logprobs[:-1]


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_scores_of_a_completion(tiny, temperature):
    """Of every token, forced ones too, whatever the sampling; the same as when they are given."""
    engine, model, _ = tiny
    sampling = SamplingParams(temperature, top_k=30, frequency_penalty=0.5)
    thinking = ThinkingParams(max=12, num_waits=1, min=6, max_answer_tokens=9)
    requests = [
        Request([5, 9, 7], thinking, sampling, seed=3, scores=scored) for scored in (True, False)
    ]
    (done,), (plain,) = complete_all(engine, requests)
    assert done.tokens == plain.tokens and any(done.forced) and plain.scores is None
    own, best = expected(model, done.prompt_ids, done.tokens)
    np.testing.assert_allclose(done.scores.logprobs, own, atol=CLOSE, rtol=0)
    assert done.scores.best_ids == best
    assert done.as_json()["scores"]["best_ids"] == best and "scores" not in plain.as_json()


def test_scores_next_to_other_requests_and_with_the_prefix_cache(tiny):
    """A cached prefix would hide what the model expected of it; samples share one scoring."""
    engine, model, _ = tiny
    prompt = [*random_pairs(1, seed=3)[0][0], *range(70)]
    engine.scheduler.prefix_caching = True
    try:
        off = ThinkingParams(mode="off", max_answer_tokens=4)
        requests = [Request(prompt, off), Request(prompt, off, n=2, prompt_scores=True)]
        for _ in range(2):
            plain, scored = complete_all(engine, requests)
            assert plain[0].prompt_scores is None
            assert scored[0].prompt_scores == scored[1].prompt_scores
            own, _ = expected(model, prompt[:1], prompt[1:])
            np.testing.assert_allclose(scored[0].prompt_scores.logprobs, own, atol=CLOSE, rtol=0)
            assert scored[0].tokens == plain[0].tokens
    finally:
        engine.scheduler.prefix_caching = False


def test_through_the_python_interface(tiny):
    _, model, folder = tiny
    llm = LLM(folder, dtype="float32", limits=LIMITS)
    ids = [tokenizer()(t, add_special_tokens=False)["input_ids"] for t in ("What is", " the 12")]
    scores = llm.score("What is", " the 12")
    assert scores == llm.score(*ids)
    np.testing.assert_allclose(scores.logprobs, expected(model, *ids)[0], atol=CLOSE, rtol=0)
    for prompt, following, message in (
        ("", "x", "prompt: is empty"), ([1] * 40, [1] * 40, "prompt of 80 tokens"),
        ([10**6], [1], "prompt: id 1000000 is not in the tokenizer"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            llm.score(prompt, following)


def test_one_prompt_at_a_time_in_a_ladder(tiny):
    """The few programs of a server give the same scores as those that fit."""
    engine, _, _ = tiny
    pairs = random_pairs(6, seed=4)
    before, scores = engine.buckets, engine.score(pairs)
    engine.buckets = ladder(
        rows=engine.limits.max_num_seqs, pages=engine.scheduler.max_pages, tokens=32
    )
    try:
        for found, expected_scores in zip(engine.score(pairs), scores, strict=True):
            assert found.best_ids == expected_scores.best_ids
            np.testing.assert_allclose(found.logprobs, expected_scores.logprobs, atol=CLOSE, rtol=0)
    finally:
        engine.buckets = before
