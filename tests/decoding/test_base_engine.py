"""`run` and `stream` over any engine; `DataParallelEngine` over several."""

import random

import pytest

from jaxs1.decoding.base_engine import BaseEngine
from jaxs1.decoding.data_parallel import DataParallelEngine
from jaxs1.decoding.outputs import Completion, StreamOutput, TokenLog
from jaxs1.decoding.params import Request


class Echo(BaseEngine):
    """Completes a sequence with its prompt, a token per step, the samples in random order."""

    tokenizer, context = "a tokenizer", 100

    def __init__(self, seed=0):
        self.rng, self.left, self.steps = random.Random(seed), {}, 0

    def submit(self, request, longest=None):
        self.longest = longest
        for sample in range(request.n):
            self.left[self.submitted, sample] = list(request.prompt_ids)
        self.submitted += 1
        return self.submitted - 1

    def cancel(self, number):
        self.left = {key: left for key, left in self.left.items() if key[0] != number}

    @property
    def busy(self):
        return bool(self.left)

    def begin(self, steps=None):
        self.steps += 1

    def end(self):
        outputs = []
        for key in self.rng.sample(sorted(self.left), len(self.left)):
            new = TokenLog([self.left[key].pop(0)], [False], [1])
            done = None
            if not self.left[key]:
                del self.left[key]
                done = Completion([], index=key[1], tokens=new.tokens)
            outputs.append(StreamOutput(*key, new, done))
        return outputs


ENGINES = [Echo, lambda: DataParallelEngine([Echo(1), Echo(2), Echo(3)])]
REQUESTS = [Request([10 * i + j for j in range(1 + i % 4)], n=1 + i % 3) for i in range(12)]


@pytest.mark.parametrize("make", ENGINES)
def test_run_gives_every_request_its_samples_in_order(make):
    engine = make()
    for _ in range(2):  # numbers begin at 0 in each call
        done = dict(engine.run(iter(REQUESTS)))
        assert sorted(done) == list(range(12))
        for i, request in enumerate(REQUESTS):
            assert [c.index for c in done[i]] == list(range(request.n))
            assert {c.tokens[0] for c in done[i]} == {request.prompt_ids[-1]}
    assert not engine.busy and engine.submitted == 24


@pytest.mark.parametrize("make", ENGINES)
def test_stream_gives_every_token_once(make):
    written = {}
    for output in make().stream(REQUESTS):
        written.setdefault((output.request, output.sample), TokenLog()).extend(output.new_tokens)
    assert {key: log.tokens for key, log in written.items()} == {
        (i, sample): list(request.prompt_ids)
        for i, request in enumerate(REQUESTS)
        for sample in range(request.n)
    }


def test_the_longest_prompt_of_a_call_is_passed_on():
    engine = Echo()
    list(engine.run(REQUESTS))
    assert engine.longest == 4


def test_requests_go_to_the_engine_with_the_fewest_completions_left():
    engines = [Echo(), Echo()]
    several = DataParallelEngine(engines)
    for n in (3, 1, 1, 1):
        several.submit(Request([1, 2], n=n))
    assert [engine.submitted for engine in engines] == [1, 3]
    several.step()
    assert [engine.steps for engine in engines] == [1, 1]  # all work at the same time
    several.step()
    assert not several.busy
    several.submit(Request([1]))
    assert [engine.submitted for engine in engines] == [2, 3]


def test_cancelling_in_one_of_several_engines():
    several = DataParallelEngine([Echo(), Echo()])
    numbers = [several.submit(Request([1, 2], n=2)) for _ in range(4)]
    several.cancel(numbers[2])
    several.cancel(numbers[2])
    several.cancel(99)
    outputs = [output for _ in range(2) for output in several.step()]
    assert {output.request for output in outputs} == {0, 1, 3}
    several.cancel(numbers[0])  # finished long ago
    assert not several.busy
    # the load of the cancelled request is gone
    first, second = several.engines
    several.submit(Request([1]))
    several.submit(Request([1]))
    assert (first.submitted, second.submitted) == (3, 3)
