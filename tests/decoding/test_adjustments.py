"""Presence and frequency penalties and logit biases: tokens are what a plain formula chooses."""

import collections
import random

import numpy as np
import pytest
import torch

from jaxs1.config import UserError
from jaxs1.decoding.params import MAX_BIASES, Request, SamplingParams, ThinkingParams
from tests.decoding.engines import complete_all, encode, open_tiny, tokenizer, write_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adjusted")
    return write_model(folder, context=256), open_tiny(folder, max_seq_len=192)


def expected(model, completion, sampling):
    """The greedy choice at every place, behind the tokens that are really there."""
    prompt, tokens = completion.prompt_ids, completion.tokens
    with torch.no_grad():
        logits_TV = model(torch.tensor([[*prompt, *tokens]])).logits[0].numpy()
    count = collections.Counter()
    for at, token in enumerate(tokens):
        logits_V = logits_TV[len(prompt) - 1 + at, : len(tokenizer())].astype(np.float64)
        for i, bias in sampling.logit_bias.items():
            logits_V[i] += bias
        if sampling.repetition_penalty != 1:
            for i in {*prompt, *tokens[:at]}:
                factor = sampling.repetition_penalty
                logits_V[i] = logits_V[i] / factor if logits_V[i] > 0 else logits_V[i] * factor
        for i, times in count.items():
            logits_V[i] -= sampling.frequency_penalty * times + sampling.presence_penalty
        yield int(logits_V.argmax())
        count[token] += 1


CASES = {
    "frequency": SamplingParams(frequency_penalty=0.7),
    "presence": SamplingParams(presence_penalty=1.5),
    "negative": SamplingParams(frequency_penalty=-0.5, presence_penalty=-1.0),
    "bias": SamplingParams(logit_bias={encode(" ")[0]: 5.0, encode("e")[0]: 4.0}),
    "banned": SamplingParams(logit_bias=dict.fromkeys(range(MAX_BIASES), -100.0)),
    "all": SamplingParams(
        frequency_penalty=0.3, presence_penalty=0.4, logit_bias={7: 2.0, 9: -3.0},
        repetition_penalty=1.2,
    ),
    "none": SamplingParams(),
}  # fmt: skip


def test_every_token_is_what_the_formula_chooses(tiny):
    """All settings in one batch, with thinking, forced tokens and an answer."""
    model, engine = tiny
    rng = random.Random(1)
    thinking = ThinkingParams(max=20, min=20, num_waits=1, max_answer_tokens=16)
    requests = [
        Request(rng.choices(range(4, len(tokenizer())), k=9), thinking, sampling)
        for sampling in CASES.values()
    ]
    different = 0
    for name, request, (done,) in zip(CASES, requests, complete_all(engine, requests), strict=True):
        chosen = list(expected(model, done, request.sampling))
        plain = list(expected(model, done, SamplingParams()))
        # within the minimum of thinking the first choice may be an end, which is forbidden
        free = [i for i, forced in enumerate(done.forced) if not forced and i >= 20]
        assert [done.tokens[i] for i in free] == [chosen[i] for i in free], name
        assert len(free) > 5 or done.finish_reason == "stop"
        different += chosen != plain
    assert different == len(CASES) - 1


def test_neighbours_and_later_sequences_are_not_penalised(tiny):
    """A row that was penalised is given to a sequence that is not; and both in one batch."""
    _, engine = tiny
    off = ThinkingParams(mode="off", max_answer_tokens=24)
    plain = Request([5, 9, 8], off)
    before = complete_all(engine, [plain])[0][0].tokens
    hard = Request([5, 9, 8], off, SamplingParams(frequency_penalty=2.0, logit_bias={3: 9.0}))
    together = complete_all(engine, [hard, plain, hard])
    assert together[1][0].tokens == before != together[0][0].tokens
    assert together[0][0].tokens == together[2][0].tokens
    assert complete_all(engine, [plain])[0][0].tokens == before


@pytest.mark.parametrize("budget", [0, 6])
def test_an_answer_ends_after_its_minimum_only(ending, budget):
    """The end is the likeliest token everywhere; the first one behind the minimum is it."""
    thinking = ThinkingParams(max=budget, max_answer_tokens=60)
    requests = [
        Request([5, 9, 7], thinking, SamplingParams(min_tokens=n), max_tokens=80)
        for n in (0, 12, 30)
    ]
    lengths = []
    for (done,) in complete_all(ending, requests):
        assert done.finish_reason == "stop"
        lengths.append(len(done.tokens))
    assert lengths[1:] == [13, 31] and lengths[0] < 13


@pytest.mark.parametrize("budget", [0, 6])
def test_an_answer_that_ignores_its_end_has_its_maximum(ending, budget):
    """The end is the likeliest token everywhere; a load test wants a length, not an answer."""
    thinking = ThinkingParams(max=budget, max_answer_tokens=60)
    request = Request([5, 9, 7], thinking, max_tokens=25, ignore_eos=True)
    (done,) = complete_all(ending, [request])[0]
    assert done.finish_reason == "length" and len(done.tokens) == 25
    assert done.answer_ids.count(encode("<|im_end|>")[0]) > 5


@pytest.fixture(scope="module")
def ending(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ending")
    write_model(folder, {encode("<|im_end|>")[0]: 9.0}, context=256)
    return open_tiny(folder, max_seq_len=192)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"presence_penalty": float("nan")}, r"presence_penalty=nan: must be a finite number"),
        ({"logit_bias": {-1: 1.0}}, r"logit_bias=-1: must be a token id"),
        ({"logit_bias": {5: float("inf")}}, r"logit_bias=5: .* finite number"),
        ({"logit_bias": dict.fromkeys(range(301), 1.0)}, r"has 301 entries; give at most 300"),
    ],
)
def test_wrong_settings(fields, message):
    with pytest.raises(UserError, match=message):
        SamplingParams(**fields)


def test_an_id_beyond_the_tokenizer_is_refused(tiny):
    request = Request([5], sampling=SamplingParams(logit_bias={10**6: 1.0}))
    (done,) = complete_all(tiny[1], [request])[0]
    assert "sampling.logit_bias: id 1000000 is not in the tokenizer" in done.error
