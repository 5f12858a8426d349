"""A small part of `benchmarks.fuzz`: every damaged input works or is refused in one line."""

from collections import Counter

import pytest

from benchmarks import fuzz
from benchmarks.fuzz_inputs import Wrong
from jaxs1.config import UserError

COUNTS = {
    "config": 60,
    "generation": 80,
    "tokenizer": 60,
    "safetensors": 120,
    "rows": 150,
    "prompts": 150,
}


@pytest.mark.parametrize("kind", COUNTS)
def test_damaged_inputs(kind):
    outcomes = list(fuzz.run(COUNTS[kind], seed=1, kinds=[kind]))
    assert [o for o in outcomes if o.result == "wrong"] == []
    assert len(outcomes) == COUNTS[kind]
    results = Counter(outcome.result for outcome in outcomes)
    assert results["accepted"] > 5 and results["refused"] > 5, results
    assert len({outcome.message for outcome in outcomes}) > 10  # they fail in different ways


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (None, "accepted"),
        (UserError("a field: wrong"), "refused"),
        (UserError("two\nlines"), "wrong"),
        (UserError("x" * 301), "wrong"),
        (KeyError("r"), "wrong"),
        (RecursionError(), "wrong"),
        (Wrong("logits differ"), "wrong"),
        (SystemExit(2), "wrong"),
    ],
)
def test_what_counts_as_refused(error, result):
    def use():
        if error is not None:
            raise error

    assert fuzz.attempt("kind", "damage", use).result == result
