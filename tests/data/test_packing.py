"""Plans are balanced and complete, packed rows hold what they should, batches follow the seed."""

import itertools

import numpy as np
import pytest

from jaxs1.config import UserError
from jaxs1.data import packing
from jaxs1.data.batches import Batches, fit_to_block
from jaxs1.data.chat import Example
from jaxs1.data.config import DataConfig


def make_examples(count, rng, longest=60):
    return [
        Example(rng.integers(1, 99, n).astype(np.int32), rng.random(n) > 0.4)
        for n in rng.integers(2, longest, count)
    ]


def make_batches(examples, seed=0, loss="token", num_row_shards=1, **data):
    return Batches(
        examples,
        DataConfig(**{"row_multiple": 8, **data}),
        batch_size=16,
        gradient_accumulation_steps=1,
        loss=loss,
        seed=seed,
        num_row_shards=num_row_shards,
        attention=0.01,
        padding_id=0,
    )


def test_plan_is_complete_and_within_its_bound_of_the_best():
    rng = np.random.default_rng(0)
    for _ in range(30):
        lengths = rng.integers(1, 50, rng.integers(1, 8)).tolist()
        rows = int(rng.integers(1, 4))
        contents = packing.plan(lengths, rows)
        assert sorted(i for row in contents for i in row) == list(range(len(lengths)))
        fullest = packing.row_length(lengths, contents, 1)
        best = min(
            max(
                sum(n for n, r in zip(lengths, choice, strict=True) if r == row)
                for row in range(rows)
            )
            for choice in itertools.product(range(rows), repeat=len(lengths))
        )
        assert best <= fullest <= best * 4 / 3
        assert packing.row_length(lengths, contents, 8) == -(-fullest // 8) * 8


def test_two_rows_of_s1k_lengths_are_nearly_full():
    """Lengths spread like s1K's: 16 sequences of a step in 2 rows leave little padding."""
    rng = np.random.default_rng(0)
    fills = []
    for _ in range(63):
        lengths = np.clip(rng.lognormal(8.3, 0.6, 16), 500, 32768).astype(int).tolist()
        length = packing.row_length(lengths, packing.plan(lengths, 2), 4096)
        fills.append(sum(lengths) / (2 * length))
    assert np.mean(fills) > 0.90


@pytest.mark.parametrize("loss", ["token", "sequence"])
@pytest.mark.parametrize("gradient_accumulation_steps", [1, 3])
def test_rows_hold_every_sequence_once(loss, gradient_accumulation_steps):
    rng = np.random.default_rng(1)
    examples = make_examples(11, rng)
    lengths = [len(e.tokens) for e in examples]
    contents = packing.plan(lengths, 3)
    length = packing.row_length(lengths, contents, 16)
    batch = packing.pack(
        examples,
        contents,
        length,
        gradient_accumulation_steps=gradient_accumulation_steps,
        loss=loss,
        padding_id=55,
    )
    assert batch.tokens.shape == (
        gradient_accumulation_steps,
        3 // gradient_accumulation_steps,
        length,
    )
    rows = [x.reshape(3, length) for x in batch]
    counts = [e.is_target[1:].sum() for e in examples]
    for row, content in enumerate(contents):
        for segment, index in enumerate(content, start=1):
            here = rows[4][row] == segment
            tokens, targets, weights, positions = (x[row][here] for x in rows[:4])
            example = examples[index]
            np.testing.assert_array_equal(tokens, example.tokens)
            np.testing.assert_array_equal(targets[:-1], example.tokens[1:])
            np.testing.assert_array_equal(positions, np.arange(len(tokens)))
            share = 1 / sum(counts) if loss == "token" else 1 / counts[index] / len(examples)
            np.testing.assert_allclose(weights[:-1], example.is_target[1:] * share, rtol=1e-6)
            assert weights[-1] == 0  # the next sequence's first token is nobody's target
        padding = rows[4][row] == 0
        assert (rows[0][row][padding] == 55).all()
        assert rows[2][row][padding].sum() == 0
    assert batch.weights.sum() == pytest.approx(1, abs=1e-6)


def test_sequence_without_targets_has_no_share():
    tokens = np.arange(4, dtype=np.int32)
    examples = [Example(tokens, np.ones(4, bool)), Example(tokens, np.zeros(4, bool))]
    batch = packing.pack(
        examples, [[0, 1]], 8, gradient_accumulation_steps=1, loss="sequence", padding_id=0
    )
    assert batch.weights.sum() == pytest.approx(1)


def test_every_epoch_is_a_permutation_and_depends_on_the_seed():
    examples = make_examples(50, np.random.default_rng(2))
    batches = make_batches(examples)
    assert batches.steps_per_epoch == 4
    epochs = [np.concatenate([batches.indices(4 * e + s) for s in range(4)]) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(50))
    assert not np.array_equal(epochs[0], epochs[1])
    assert len(batches.indices(3)) == 2  # the rest of an epoch is a smaller step
    again, other = make_batches(examples), make_batches(examples, seed=1)
    for step in (0, 7, 3):  # any order: no hidden position
        for mine, same in zip(batches.batch(step)[0], again.batch(step)[0], strict=True):
            np.testing.assert_array_equal(mine, same)
    assert not np.array_equal(batches.indices(0), other.indices(0))


def test_chosen_rows_are_a_multiple_of_the_parts_and_worth_it():
    rng = np.random.default_rng(3)
    examples = make_examples(64, rng)
    batches = make_batches(examples, num_row_shards=4)
    assert batches.rows % 4 == 0
    filled = [batches.batch(s)[1] for s in range(4)]
    one_each = make_batches(examples, rows=16)
    one_each_tokens = sum(one_each.batch(s)[1].padded_tokens for s in range(4))
    assert sum(s.padded_tokens for s in filled) < one_each_tokens
    assert all(s.tokens <= s.padded_tokens for s in filled)


def test_rows_that_the_mesh_cannot_split():
    with pytest.raises(UserError, match=r"data\.rows=6: must be a multiple of .*=4.*give 8"):
        make_batches(make_examples(20, np.random.default_rng(4)), num_row_shards=4, rows=6)


def test_long_examples_are_dropped_and_counted_or_refused():
    examples = make_examples(40, np.random.default_rng(5))
    longer = sum(len(e.tokens) > 30 for e in examples)
    kept, dropped = fit_to_block(examples, 30, "drop")
    assert dropped == longer > 0
    assert len(kept) == 40 - longer
    with pytest.raises(UserError, match=rf"data\.block_size=30: {longer} of 40 examples"):
        fit_to_block(examples, 30, "error")
    with pytest.raises(UserError, match=r"data\.block_size=1: every example is longer"):
        fit_to_block(examples, 1, "drop")
