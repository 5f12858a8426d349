"""Loss and gradients are those of the published formulas, written once more in torch (float64)."""

import functools
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxs1.rl.batches import TokenColumns, pack, sequence_weights
from jaxs1.rl.config import ObjectiveConfig
from jaxs1.rl.objective import token_objective
from jaxs1.training.loss import Distribution, target_logprobs, token_loss
from tests.numerics import TOLERANCE, assert_close, relative_error
from tests.rl.trajectories import random_trajectories

D, V, VOCABULARY, GATED = 16, 40, 36, (3, 7)
LIVE, SEQUENCES, LONGEST, T = 6, 8, 30, 24
SLOW = pytest.mark.slow
VARIANTS = [
    {"kl": kl, **more}
    for kl, more in itertools.product(
        (0.0, 0.04),
        (
            {},
            {"cap": 1.5, "old": "trainer", "tis_cap": 1.2},
            {"clip_low": 0.1, "clip_high": 0.4, "old": "trainer", "tis_cap": 2.0},
            {"surrogate": "cispo", "cap": 1.3},
            {"surrogate": "cispo", "cap": 5.0, "old": "trainer", "tis_cap": 1.2},
        ),
    )
]


def problem(seed=0):
    """Hidden states, head, trajectories, and how far sampler, trainer and reference are away."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(LIVE, T, D)).astype(np.float32)
    head = (0.4 * rng.normal(size=(D, V))).astype(np.float32)
    made = random_trajectories(rng, LIVE, vocabulary=VOCABULARY, gated_ids=GATED, longest=T)
    noise = {name: 0.4 * rng.normal(size=(LIVE, T)) for name in ("sampled", "old", "reference")}
    return hidden, head, made, noise


def in_torch(config, temperature, hidden, head, made, noise):
    """The loss, its gradients, and the columns that belong to it, sequence by sequence."""
    h = torch.tensor(hidden, dtype=torch.float64, requires_grad=True)
    w = torch.tensor(head, dtype=torch.float64, requires_grad=True)
    columns = {name: np.zeros((LIVE, T), np.float32) for name in noise}
    losses, counts = [], []
    for i, t in enumerate(made):
        n = len(t.tokens) - 1  # position p predicts token p + 1
        logits = h[i, :n] @ w / temperature
        logits[:, VOCABULARY:] = -torch.inf
        for p in range(n):
            if t.gated[p + 1]:
                logits[p, list(GATED)] = -torch.inf
        logp = torch.log_softmax(logits, -1)[range(n), torch.tensor(t.targets[1:]).long()]
        found = {
            name: torch.tensor((logp.detach().numpy() + x[i, :n]).astype(np.float32))
            for name, x in noise.items()
        }
        for name, x in found.items():
            columns[name][i, :n] = np.where(t.chosen[1:], x, 0)
        old = found["old" if config.old == "trainer" else "sampled"].double()
        on = torch.tensor(t.chosen[1:])
        ratio, A = torch.exp(logp - old), t.advantage
        capped = ratio if config.cap is None else torch.clamp(ratio, max=config.cap)
        if config.surrogate == "clip":
            clipped = torch.clamp(ratio, 1 - config.clip_low, 1 + config.clip_high)
            loss = -torch.min(capped * A, clipped * A)
        else:
            loss = -capped.detach() * A * logp
        if config.old == "trainer":
            loss = loss * torch.clamp(torch.exp(old - found["sampled"]), max=config.tis_cap)
        ahead = found["reference"] - logp
        loss = loss + config.kl * (torch.exp(ahead) - ahead - 1)
        losses.append(loss[on])
        counts.append(int(on.sum()))
    if config.aggregate == "token":  # dead sequences count as if they were as long as the others
        total = sum(x.sum() for x in losses) / (sum(counts) * SEQUENCES / LIVE)
    elif config.aggregate == "sequence":
        total = sum(x.sum() / max(1, n) for x, n in zip(losses, counts, strict=True)) / SEQUENCES
    else:
        total = sum(x.sum() for x in losses) / (SEQUENCES * LONGEST)
    total.backward()
    return (total.item(), h.grad.numpy(), w.grad.numpy()), columns


def batch_of(config, made, columns):
    """The packed batch, one sequence per row, as [B, T]."""
    weights = sequence_weights(made, config, sequences=SEQUENCES, longest=LONGEST)
    batch = pack(made, weights, rows=LIVE, row_length=T, padding_id=0)
    batch = jax.tree.map(lambda x: x[0], batch)
    order = [
        next(i for i, t in enumerate(made) if t.tokens.tolist() == row[: len(t.tokens)].tolist())
        for row in batch.tokens
    ]
    assert sorted(order) == list(range(LIVE))
    sampled, old, reference = (columns[name][order] for name in ("sampled", "old", "reference"))
    more = {"sampled": sampled}
    if config.old == "trainer":
        more["old"] = old
    if config.kl:
        more["reference"] = reference
    return batch._replace(columns=batch.columns._replace(**more)), order


@functools.cache
def compiled(config, temperature, chunk):
    """Loss and gradients of this package, by hidden states and by the head."""

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def ours(hidden, head, batch):
        return token_loss(
            hidden, head, batch.targets, batch.columns,
            objective=partial(token_objective, config), chunk=chunk, gated_BT=batch.gated,
            distribution=Distribution(temperature, VOCABULARY, GATED),
        )  # fmt: skip

    return ours


@pytest.mark.parametrize("temperature", [*(pytest.param(t, marks=SLOW) for t in (0.7, 1.0)), 1.3])
def test_loss_and_gradients_are_torchs(temperature):
    hidden, head, made, noise = problem()
    for variant, aggregate in itertools.product(VARIANTS, ("token", "sequence", "constant")):
        config = ObjectiveConfig(**variant, aggregate=aggregate)
        expected, columns = in_torch(config, temperature, hidden, head, made, noise)
        batch, order = batch_of(config, made, columns)
        # the weights make the aggregate, one compiled function serves all three
        ours = compiled(ObjectiveConfig(**variant), temperature, 48 if config.kl else 1000)
        (loss, metrics), (by_hidden, by_head) = ours(hidden[order], head, batch)
        found = (loss, by_hidden[np.argsort(order)], by_head)
        for mine, theirs in zip(found, expected, strict=True):
            error = relative_error(mine, theirs)
            assert error <= TOLERANCE["policy loss and gradients = torch"], (config, error)
        assert metrics.sums["tokens"] == sum(t.choices for t in made)
        assert ("kl" in metrics.sums) == bool(config.kl)
        assert ("tis_cut" in metrics.sums) == (config.old == "trainer")


def test_metrics_are_counted_by_hand():
    """Three chosen tokens whose ratios are known, and one that was not chosen."""
    config = ObjectiveConfig(old="trainer", tis_cap=1.5)
    rng = np.random.default_rng(3)
    hidden, head = rng.normal(size=(1, 4, D)).astype(np.float32), rng.normal(size=(D, V))
    head = head.astype(np.float32)
    targets = np.array([[1, 2, 5, 6]], np.int32)
    logp = np.take_along_axis(jax.nn.log_softmax(hidden @ head), targets[..., None], 2)[..., 0]
    ratio = np.array([[0.5, 2.0, 1.1, 9.0]])
    columns = (
        np.array([[1, 1, 1, 0]], np.float32),
        np.array([[-1, 1, 1, 1]], np.float32),
        (logp - np.log(ratio) - np.log([[1, 2, 1, 1]])).astype(np.float32),
        (logp - np.log(ratio)).astype(np.float32),
        None,
    )
    _, metrics = token_loss(
        jnp.asarray(hidden), jnp.asarray(head), targets, TokenColumns(*columns),
        objective=partial(token_objective, config), chunk=8,
    )  # fmt: skip
    gaps = np.abs(np.log(ratio) + np.log([[1, 2, 1, 1]]))[0, :3]
    sums = {name: float(x) for name, x in metrics.sums.items()}
    assert [sums[x] for x in ("tokens", "clipped_low", "clipped_high", "tis_cut")] == [3, 1, 1, 1]
    assert sums["gap"] == pytest.approx(gaps.sum(), rel=1e-5)
    assert float(metrics.maxima["gap"]) == pytest.approx(gaps.max(), rel=1e-5)
    d = np.array([np.log(0.5), np.log(4), np.log(1.1)])
    assert sums["k3"] == pytest.approx((np.exp(d) - 1 - d).sum(), rel=1e-5)
    p = np.asarray(jax.nn.softmax(hidden @ head))[0, :3]
    assert sums["entropy"] == pytest.approx(-(p * np.log(p)).sum(), rel=1e-5)


@pytest.mark.parametrize("chunk", [1000, 10])
def test_scores_are_the_log_probabilities(chunk):
    hidden, head, made, _ = problem(1)
    batch, _ = batch_of(ObjectiveConfig(), made, in_torch(ObjectiveConfig(), 0.8, *problem(1))[1])
    found = target_logprobs(
        jnp.asarray(hidden), jnp.asarray(head), batch.targets, chunk=chunk, gated_BT=batch.gated,
        distribution=Distribution(0.8, VOCABULARY, GATED),
    )  # fmt: skip
    logits = np.array(hidden @ head) / 0.8
    logits[..., VOCABULARY:] = -np.inf
    logits[np.ix_(*map(range, logits.shape[:2]), GATED)] = np.where(
        batch.gated[..., None], -np.inf, logits[..., GATED]
    )
    plain = jax.nn.log_softmax(logits)
    expected = np.take_along_axis(np.asarray(plain), batch.targets[..., None], 2)[..., 0]
    assert_close(found, expected, "policy loss and gradients = torch")
