"""Plans are balanced and complete, and packed rows contain every sequence once."""

import itertools

import numpy as np
import pytest

from jaxs1.data import packing
from jaxs1.data.chat import Example


def make_examples(count, rng, longest=60):
    return [
        Example(rng.integers(1, 99, n).astype(np.int32), rng.random(n) > 0.4)
        for n in rng.integers(2, longest, count)
    ]


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
            assert weights[-1] == 0  # the next sequence's first token is no target
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


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_chosen_rows_are_the_cheapest_of_all(shards):
    """Against the cost of every possible number of rows, computed here from packed lengths."""
    rng = np.random.default_rng(7)
    steps = [rng.integers(2, 60, 16).tolist() for _ in range(5)]

    def cost(rows):
        total = 0
        for lengths in steps:
            loads = [sum(lengths[i] for i in row) for row in packing.plan(lengths, rows)]
            length = -(-max(loads) // 8) * 8
            total += sum(length + 0.05 * length**2 / 2 for _ in range(rows))
        return total

    found = packing.choose_rows(
        steps, num_row_shards=shards, gradient_accumulation_steps=1, multiple=8, attention=0.05
    )
    assert cost(found) == min(cost(rows) for rows in range(shards, 17, shards))
    assert found % shards == 0
