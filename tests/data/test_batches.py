"""Batches follow the seed and the step only; their counts are those of their arrays."""

import numpy as np
import pytest

from jaxs1.config import UserError
from jaxs1.data.batches import Batches, fit_to_block
from jaxs1.data.config import DataConfig
from tests.data.test_packing import make_examples


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


def test_counts_are_those_of_the_arrays():
    batches = make_batches(make_examples(40, np.random.default_rng(6)))
    for step in range(3):
        batch, stats = batches.batch(step)
        assert stats.tokens == np.count_nonzero(batch.segments)
        assert stats.padded_tokens == batch.tokens.size
        assert stats.attention_pairs == (batch.positions + 1)[batch.segments > 0].sum()
        assert list(stats.examples) == batches.indices(step).tolist()
        ends = (batch.positions == 0) & (batch.segments > 0)
        assert len(stats.examples) == ends.sum()
