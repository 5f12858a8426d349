"""Who survives is what transformers' warpers leave; who is drawn follows the probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from jaxs1.decoding.sampling import (
    BLOCK,
    SamplingFlags,
    SamplingState,
    draw_from,
    keep_likely,
    penalise,
    sample,
)

ROWS, VOCAB = 24, 1300
ALL = SamplingFlags(sampled=True, filtered=True, penalised=True)
draw_from_jit = jax.jit(draw_from)
sample_jit = jax.jit(lambda *arguments: sample(*arguments)[0], static_argnums=4)


def random_logits(rng, rows=ROWS, vocab=VOCAB):
    logits_BV = rng.normal(scale=3, size=(rows, vocab)).astype(np.float32)
    logits_BV[rng.random(logits_BV.shape) < 0.05] = -np.inf
    return logits_BV


def sampling_of(rng, rows, **fields):
    """Settings of every kind, each row its own; `fields` are the same for all rows."""
    pick = lambda *values: rng.choice(values, rows)  # noqa: E731
    sampling = SamplingState(
        temperature=pick(0, 0.3, 0.7, 1, 2).astype(np.float32),
        answer_temperature=pick(0, 0.5, 1).astype(np.float32),
        top_k=pick(0, 1, 2, 10, 700, 5000).astype(np.int32),
        top_p=pick(1, 0.95, 0.5, 0.01).astype(np.float32),
        min_p=pick(0, 0.05, 0.5, 1).astype(np.float32),
        penalty=pick(1, 1.3, 0.7).astype(np.float32),
        seen_BV=rng.random((rows, VOCAB)) < 0.2,
        key_B=rng.integers(0, 2**32, (rows, 2), dtype=np.uint32),
    )
    return sampling._replace(**fields)


@pytest.mark.parametrize("seed", range(4))
def test_survivors_are_those_of_transformers(seed):
    rng = np.random.default_rng(seed)
    logits_BV, sampling = random_logits(rng), sampling_of(rng, ROWS)
    heat_B = np.where(sampling.temperature == 0, 1, sampling.temperature)
    warm = jax.jit(lambda x: penalise(x, sampling.seen_BV, sampling.penalty) / heat_B[:, None])(
        logits_BV
    )
    kept_BV = jax.jit(keep_likely)(warm, sampling.top_k, sampling.top_p, sampling.min_p)
    for b, (logits_V, kept_V) in enumerate(zip(logits_BV, kept_BV, strict=True)):
        ids = torch.tensor(np.nonzero(sampling.seen_BV[b])[0])[None]
        steps = [RepetitionPenaltyLogitsProcessor(float(sampling.penalty[b]))]
        steps += [TemperatureLogitsWarper(float(heat_B[b]))]
        steps += [TopKLogitsWarper(int(sampling.top_k[b]))] if sampling.top_k[b] else []
        steps += [TopPLogitsWarper(float(sampling.top_p[b]))] if sampling.top_p[b] < 1 else []
        steps += [MinPLogitsWarper(float(sampling.min_p[b]))]
        scores = torch.tensor(logits_V)[None]
        for step in steps:
            scores = step(ids, scores)
        np.testing.assert_array_equal(np.isfinite(kept_V), np.isfinite(scores[0].numpy()))
        np.testing.assert_allclose(kept_V, scores[0].numpy(), rtol=1e-6)


def test_equally_likely_ids_stay_together():
    logits = np.append(np.log(np.float32([0.3, 0.3, 0.2, 0.2])), np.float32(-np.inf))[None]
    for top_k, top_p, stay in ((1, 1, 2), (3, 1, 4), (0, 0.2, 2), (0, 0.7, 4), (9, 1, 4)):
        kept = keep_likely(logits, np.array([top_k]), np.float32([top_p]), np.float32([0]))
        assert np.isfinite(kept).sum() == stay, (top_k, top_p)


def test_drawn_ids_follow_the_running_sum():
    """Every uniform number to its id, against float64."""
    rng = np.random.default_rng(5)
    p_V = rng.gamma(0.2, size=VOCAB).astype(np.float32)
    p_V[rng.random(VOCAB) < 0.5] = 0
    uniform_B = ((np.arange(20_000) + 0.5) / 20_000).astype(np.float32)
    p_V /= p_V.sum()
    drawn_B = np.concatenate(
        [draw_from_jit(np.tile(p_V, (1000, 1)), u) for u in uniform_B.reshape(-1, 1000)]
    )
    sums_V = np.cumsum(p_V, dtype=np.float64)
    target_B = uniform_B * sums_V[-1]
    expected_B = np.searchsorted(sums_V, target_B, side="right")
    # rounding may decide what lies within a hair of an edge
    clear_B = np.abs(sums_V[:, None] - target_B).min(0) > 1e-6
    assert clear_B.mean() > 0.9
    assert (drawn_B == expected_B)[clear_B].all()
    assert (p_V[drawn_B] > 0).all()


def test_an_id_without_probability_is_never_drawn():
    """Running sums are rounded, each differently: they may rise where nothing is added."""
    rng = np.random.default_rng(6)
    tempted = 0
    for _ in range(40):
        p_V = rng.gamma(0.3, size=BLOCK).astype(np.float32)
        p_V[rng.random(BLOCK) < 0.5] = 0
        p_V /= p_V.sum()
        sums_V = np.asarray(jax.jit(jnp.cumsum)(p_V))
        before_V = np.concatenate([[0], np.maximum.accumulate(sums_V)[:-1]])
        (risen,) = np.nonzero((p_V == 0) & (sums_V > before_V))
        tempted += len(risen)
        # numbers in and around the gap that such a rise leaves
        near = [before_V[i] for i in risen] + [sums_V[i] for i in risen] + [0.5]
        uniform_B = np.float32([x + k * 2.0**-24 for x in near for k in range(-2, 3)])
        uniform_B = np.resize(uniform_B, 256)
        drawn_B = np.asarray(draw_from_jit(np.tile(p_V, (256, 1)), uniform_B))
        assert (p_V[drawn_B] > 0).all()
    assert tempted > 20  # or the test has lost its point


def test_edges_of_a_draw():
    last = np.nextafter(np.float32(1), np.float32(0))
    for vocab in (1, 5, BLOCK, BLOCK + 1, VOCAB):
        only = np.repeat([0, vocab // 2, vocab - 1], 3)
        p = np.eye(vocab, dtype=np.float32)[only]
        assert draw_from_jit(p, np.float32([0, 0.5, last] * 3)).tolist() == only.tolist()
    ends, thin = np.zeros((2, 1, VOCAB), np.float32)
    ends[:, [3, VOCAB - 1]], thin[:] = 0.5, 1e-30
    thin[:, 7] = 1
    p = np.concatenate([ends, ends, thin])
    assert draw_from_jit(p, np.float32([0, last, last])).tolist() == [3, VOCAB - 1, 7]


@pytest.mark.parametrize("seed", range(2))
def test_frequencies(seed):
    """Pearson's statistic of 6,000 draws at 6,000 positions, beyond its 99.9999 % point never."""
    rng = np.random.default_rng(seed)
    N, V = 6000, 600
    logits_V = rng.normal(scale=1.0, size=V).astype(np.float32)
    zeros, ones = np.zeros(N, np.float32), np.ones(N, np.float32)
    key_B = np.tile(np.uint32([1, seed]), (N, 1))
    sampling = SamplingState(
        ones, ones, zeros.astype(int), ones, zeros, ones, np.zeros((N, 1), bool), key_B
    )
    flags = SamplingFlags(sampled=True, filtered=False, penalised=False)
    drawn_B = sample_jit(np.tile(logits_V, (N, 1)), sampling, zeros > 0, np.arange(N), flags)
    p_V = np.exp(logits_V.astype(np.float64))
    expected_V = N * p_V / p_V.sum()
    counted_V = np.bincount(drawn_B, minlength=V)
    # rare ids together, so that every cell expects a few
    rare_V = expected_V < 5
    cells = [np.append(x[~rare_V], x[rare_V].sum()) for x in (counted_V, expected_V)]
    statistic = ((cells[0] - cells[1]) ** 2 / cells[1]).sum()
    freedom = len(cells[0]) - 1
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


def test_a_row_does_not_depend_on_the_others():
    rng = np.random.default_rng(8)
    logits_BV, sampling = random_logits(rng), sampling_of(rng, ROWS)
    answering_B, position_B = rng.random(ROWS) < 0.5, rng.integers(0, 500, ROWS)
    together_B = np.asarray(sample_jit(logits_BV, sampling, answering_B, position_B, ALL))
    assert np.isfinite(logits_BV[np.arange(ROWS), together_B]).all()
    order = rng.permutation(ROWS)
    moved = jax.tree.map(lambda x: x[order], (logits_BV, sampling, answering_B, position_B))
    np.testing.assert_array_equal(sample_jit(*moved, ALL), together_B[order])
    for b in range(ROWS):
        row = jax.tree.map(
            lambda x, b=b: x[b : b + 1], (logits_BV, sampling, answering_B, position_B)
        )
        assert sample_jit(*row, ALL)[0] == together_B[b]


def test_what_a_row_does_not_ask_for_changes_nothing():
    """A neighbour's filters, penalties and temperature are compiled in; this row is untouched."""
    rng = np.random.default_rng(9)
    ones, zeros = np.ones(ROWS, np.float32), np.zeros(ROWS, np.float32)
    neutral = {"top_k": zeros.astype(int), "top_p": ones, "min_p": zeros, "penalty": ones}
    logits_BV, sampling = random_logits(rng), sampling_of(rng, ROWS, **neutral)
    rest = (zeros > 0, np.arange(ROWS))
    plain = SamplingFlags(sampled=True, filtered=False, penalised=False)
    np.testing.assert_array_equal(
        sample_jit(logits_BV, sampling, *rest, ALL), sample_jit(logits_BV, sampling, *rest, plain)
    )
    greedy = sampling._replace(temperature=zeros)
    likeliest_B = logits_BV.argmax(1)
    for flags in (ALL, plain, SamplingFlags(False, False, False)):
        np.testing.assert_array_equal(sample_jit(logits_BV, greedy, *rest, flags), likeliest_B)


def test_thinking_and_answer_have_their_temperatures():
    rng = np.random.default_rng(10)
    ones, zeros = np.ones(ROWS, np.float32), np.zeros(ROWS, np.float32)
    logits_BV = random_logits(rng)
    sampling = sampling_of(rng, ROWS, temperature=5 * ones, answer_temperature=zeros, penalty=ones,
                   top_k=zeros.astype(int), top_p=ones, min_p=zeros)  # fmt: skip
    answering_B = np.arange(ROWS) % 2 == 0
    chosen_B = np.asarray(sample_jit(logits_BV, sampling, answering_B, np.arange(ROWS), ALL))
    likeliest_B = logits_BV.argmax(1)
    assert (chosen_B == likeliest_B)[answering_B].all()
    assert (chosen_B != likeliest_B)[~answering_B].all()
    later_B = np.asarray(sample_jit(logits_BV, sampling, answering_B, np.arange(ROWS) + 1, ALL))
    assert (later_B != chosen_B)[~answering_B].mean() > 0.8  # every position has its own number
