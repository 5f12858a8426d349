"""Prompts are answered concurrently, and start only when they may."""

import threading

import pytest

from jaxs1.config import UserError
from jaxs1.inference.interface import NoAnswer, answer_all


class Doubler:
    """Answers n with 2 n, once `go` is set; refuses 13."""

    def __init__(self, parallel=4):
        self.parallel, self.go, self.closed = parallel, threading.Event(), False
        self.go.set()

    def answer(self, n):
        self.go.wait(10)
        if n == 13:
            raise NoAnswer("unlucky", refused=True)
        return 2 * n

    def close(self):
        self.closed = True


def test_all_are_answered_and_the_model_is_closed():
    model = Doubler()
    found = dict(answer_all(model, ((str(n), n) for n in range(20))))
    assert isinstance(found.pop("13"), NoAnswer)
    assert found == {str(n): 2 * n for n in range(20) if n != 13} and model.closed


def test_a_prompt_that_may_not_start_waits_for_others_and_ends_the_work():
    """At most two run at a time, and six in all."""
    started, finished = [], []

    def may_start(n):
        running = len(started) - len(finished)
        assert running <= 2
        if running == 2 or len(started) == 6:
            return False
        started.append(n)
        return True

    for key, _ in answer_all(Doubler(), ((n, n) for n in range(9)), may_start):
        finished.append(key)
    assert started == list(range(6)) and sorted(finished) == started


def test_prompts_that_break_lose_no_pending_answer():
    def prompts():
        yield from ((n, n) for n in range(3))
        raise UserError("line 4: is damaged")

    model, found = Doubler(), []
    with pytest.raises(UserError, match="line 4"):
        found.extend(answer_all(model, prompts()))
    assert sorted(found) == [(0, 0), (1, 2), (2, 4)] and model.closed
