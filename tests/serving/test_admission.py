"""A bounded queue: what is inside never exceeds the bounds, and leaving makes room again."""

import random

import pytest

from jaxs1.serving.admission import Admission
from jaxs1.serving.errors import ApiError


def test_bounds_hold_in_any_order():
    rng = random.Random(1)
    admission, inside, refused = Admission(4, 6, 500), [], 0
    for _ in range(5000):
        if inside and rng.random() < 0.45:
            sequences, tokens, begun = inside.pop(rng.randrange(len(inside)))
            if not begun:
                admission.begun(tokens)
            admission.leave(sequences)
            continue
        sequences, tokens = rng.choice([1, 1, 2, 5]), rng.choice([10, 200, 700])
        full = sum(s for s, *_ in inside) + sequences > 10
        long = sum(t for _, t, begun in inside if not begun) + tokens > 500
        waiting = any(not begun for *_, begun in inside)
        if (full and inside) or (long and waiting):
            with pytest.raises(ApiError) as caught:
                admission.enter(sequences, tokens)
            refused += 1
            assert (caught.value.status, caught.value.code) == (429, "queue_full")
            assert 1 <= caught.value.retry_after <= 60
        else:
            admission.enter(sequences, tokens)
            begun = rng.random() < 0.5
            if begun:
                admission.begun(tokens)
            inside.append((sequences, tokens, begun))
    for sequences, tokens, begun in inside:
        if not begun:
            admission.begun(tokens)
        admission.leave(sequences)
    assert (admission.inside, admission.waiting_tokens) == (0, 0) and refused > 100


def test_one_request_may_always_come_in_where_nothing_waits():
    admission = Admission(2, 0, 10)
    admission.enter(16, 5000)
    with pytest.raises(ApiError):
        admission.enter(1, 1)
