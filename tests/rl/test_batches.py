"""Columns say who chose what; packing, micro-batches and devices change no gradient."""

import jax
import numpy as np
import optax
import pytest

from jaxs1.decoding.budget import NONE
from jaxs1.decoding.outputs import Completion
from jaxs1.model import transformer
from jaxs1.model.config import MeshConfig
from jaxs1.model.sharding import make_sharding_rules
from jaxs1.rl.batches import pack, sequence_weights, trajectory
from jaxs1.rl.config import ObjectiveConfig
from jaxs1.rl.objective import make_scorer, policy_loss
from jaxs1.training.loss import Distribution
from jaxs1.training.step import init_state, make_train_step, put_batch
from tests.numerics import assert_close
from tests.rl.trajectories import random_trajectories
from tests.tiny_models import one_device
from tests.training.test_step import make_model

DRAWN = Distribution(0.8, 60, (5, 9))
CONFIG = ObjectiveConfig()


def test_a_trajectory_is_the_choices_shifted_by_the_prompt():
    """A kept token, an end replaced by a Wait of two tokens, a close, an answer."""
    done = Completion(
        prompt_ids=[10, 11],
        tokens=[1, 20, 21, 2, 30, 4],
        forced=[False, True, True, False, True, False],
        choices=[1, 9, NONE, 2, NONE, 4],
        logprobs=[-1.0, -2.0, 0.0, -3.0, 0.0, -4.0],
        gated=[True, False, False, True, False, False],
    )
    t = trajectory(done, 0.5)
    assert t.tokens.tolist() == [10, 11, 1, 20, 21, 2, 30, 4]
    assert t.targets.tolist() == [10, 11, 1, 9, 21, 2, 30, 4]
    assert t.chosen.tolist() == [False, False, True, True, False, True, False, True]
    assert t.gated.tolist() == [False, False, True, False, False, True, False, False]
    assert t.logprobs.tolist() == [0, 0, -1, -2, 0, -3, 0, -4]
    assert (t.advantage, t.choices) == (0.5, 4)
    batch = pack([t], [0.25], rows=1, row_length=8, padding_id=7)
    assert batch.targets[0, 0].tolist() == [11, 1, 9, 21, 2, 30, 4, 7]
    assert batch.columns.weights[0, 0].tolist() == [0, 0.25, 0.25, 0, 0.25, 0, 0.25, 0]
    assert batch.columns.sampled[0, 0].tolist() == [0, -1, -2, 0, -3, 0, -4, 0]


def test_weights_of_the_three_aggregates():
    made = random_trajectories(np.random.default_rng(0), 5, vocabulary=60)
    n = np.array([t.choices for t in made])
    total = {
        kind: (sequence_weights(made, ObjectiveConfig(aggregate=kind), sequences=8, longest=30) * n)
        for kind in ("token", "sequence", "constant")
    }
    # of a loss of 1 for every chosen token, the mean over 8 sequences of which 3 are dead
    assert total["token"].sum() == pytest.approx(5 / 8)
    assert total["sequence"] == pytest.approx((n > 0) / 8)
    assert total["constant"] == pytest.approx(n / (8 * 30))


def test_micro_batches_are_a_power_of_two_of_one_shape():
    made = random_trajectories(np.random.default_rng(1), 30, vocabulary=60)
    batch = pack(made, np.ones(30), rows=2, row_length=64, padding_id=0)
    count = batch.tokens.shape[0]
    assert count & (count - 1) == 0 and {x.shape[1:] for x in jax.tree.leaves(batch)} == {(2, 64)}
    assert (batch.columns.weights > 0).sum() == sum(t.choices for t in made)


def step(rows, row_length, rules=None, accumulated=None):
    """Metrics and parameters after one step on the same 8 trajectories."""
    made = random_trajectories(np.random.default_rng(2), 8, vocabulary=60, gated_ids=DRAWN[2])
    weights = sequence_weights(made, CONFIG, sequences=10, longest=40)
    batch = pack(made, weights, rows=rows, row_length=row_length, padding_id=0)
    assert accumulated in (None, batch.tokens.shape[0])
    sampled = np.where(batch.columns.weights > 0, -3.0, 0).astype(np.float32)
    batch = batch._replace(columns=batch.columns._replace(sampled=sampled))
    model, params = make_model(rules or one_device())
    params = jax.device_put(params, transformer.shardings(model))
    optimizer = optax.sgd(0.5)
    train = make_train_step(model, optimizer, loss_chunk=16, loss=policy_loss(CONFIG, DRAWN))
    state, metrics = train(init_state(model, optimizer, params), put_batch(batch, model.rules))
    return metrics, state.params


@pytest.fixture(scope="module")
def alone():
    """One row for every sequence, nothing packed."""
    return step(8, 24, accumulated=1)


@pytest.mark.parametrize(("rows", "length", "count"), [(4, 40, 1), (2, 40, 2), (1, 40, 4)])
def test_packing_and_micro_batches_change_nothing(rows, length, count, alone):
    assert_close(step(rows, length, accumulated=count), alone, "packed = unpacked")


@pytest.mark.slow
def test_eight_devices_change_nothing(alone):
    rules = make_sharding_rules(MeshConfig(fsdp=2, context=2, tensor=2), jax.devices()[:8])
    assert_close(step(4, 40, rules), alone, "mesh = one device, losses of 5 steps")


def test_scores_of_a_batch_make_the_gap_vanish():
    """What the scorer says is what the loss computes: as sampler's logprobs they leave no gap."""
    made = random_trajectories(np.random.default_rng(4), 6, vocabulary=60, gated_ids=DRAWN[2])
    batch = pack(made, np.ones(6), rows=2, row_length=64, padding_id=0)
    model, params = make_model(one_device())
    scores = np.asarray(make_scorer(model, DRAWN, chunk=16)(params, None, batch))
    assert scores.shape == batch.tokens.shape
    on = batch.columns.weights > 0
    assert np.isfinite(scores[on]).all()
    sampled = np.where(on, scores, 0).astype(np.float32)
    batch = batch._replace(columns=batch.columns._replace(sampled=sampled))
    optimizer = optax.sgd(0.0)
    train = make_train_step(model, optimizer, loss_chunk=32, loss=policy_loss(CONFIG, DRAWN))
    _, metrics = train(init_state(model, optimizer, params), put_batch(batch, model.rules))
    assert float(metrics.tokens.maxima["gap"]) < 1e-5
    assert metrics.tokens.sums["tokens"] == on.sum()
