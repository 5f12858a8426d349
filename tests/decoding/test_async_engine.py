"""Many threads get what one engine gives; a failure, a close, a cancellation reach who waits."""

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from jaxs1.config import UserError
from jaxs1.decoding.async_engine import AsyncEngine, EngineClosed
from jaxs1.decoding.base_engine import BaseEngine
from jaxs1.decoding.outputs import Completion, StreamOutput, TokenLog
from jaxs1.decoding.params import Request, ThinkingParams
from tests.decoding.engines import HOT, complete_all, encode, open_tiny, tokenizer, write_model

SHORT = ThinkingParams(max=6, num_waits=1, max_answer_tokens=6, min_answer_tokens=1)


def requests(count):
    return [
        Request(encode(f"Question {i}: what is {i}?")[:20], SHORT, HOT, n=1 + i % 2, seed=i)
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("async")
    write_model(folder, {encode("<|im_start|>")[0]: 3.0, encode("<|im_end|>")[0]: 2.5})
    return open_tiny(folder)


class Slow(BaseEngine):
    """Completes a request of n tokens in n steps; breaks at an empty prompt."""

    tokenizer = tokenizer()

    def __init__(self):
        self.running, self.cancelled, self.steps = {}, [], 0

    def submit(self, request, longest=None):
        self.submitted += 1
        self.running[self.submitted - 1] = list(request.prompt_ids)
        return self.submitted - 1

    def cancel(self, number):
        self.cancelled.append(number)
        del self.running[number]

    @property
    def busy(self):
        return bool(self.running)

    def step(self, meanwhile):
        meanwhile()
        self.steps += 1
        time.sleep(0.001)
        outputs = []
        for number, left in list(self.running.items()):
            new = TokenLog([left.pop(0)], [False], [1])  # an empty prompt raises IndexError
            done = None if left else Completion([], answer=str(number))
            if done is not None:
                del self.running[number]
            outputs.append(StreamOutput(number, 0, new, done))
        return outputs


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_many_threads_get_what_the_engine_gives(engine):
    expected = complete_all(engine, requests(12))
    before = threading.active_count()
    shared = AsyncEngine(lambda: engine)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda r: shared.submit(r).result(), requests(12)))
    shared.close()
    assert [[c.tokens for c in completions] for completions in found] == [
        [c.tokens for c in completions] for completions in expected
    ]
    assert [c.index for c in found[1]] == [0, 1]
    assert threading.active_count() == before


def test_a_stream_adds_up_to_its_completions(engine):
    shared = AsyncEngine(lambda: engine)
    (one, two) = requests(2)
    written, done = {0: [], 1: []}, {}
    other = shared.submit(one)
    for output in shared.stream(lambda tokenizer: two):
        written[output.sample] += output.new_tokens.tokens
        if output.completion is not None:
            done[output.sample] = output.completion.tokens
    assert written == done and len(done) == 2
    assert len(other.result()[0].tokens) > 0
    shared.close()


def test_cancelled_requests_give_their_pages_back(engine):
    """Of a future and of a stream that is left; the others' tokens stay the same."""
    (expected,) = complete_all(engine, requests(1))
    shared = AsyncEngine(lambda: engine)
    long = Request(encode("What?"), ThinkingParams(min=30, min_answer_tokens=1), HOT, n=2)
    stream = shared.stream(long)
    next(stream)
    future = shared.submit(long)
    same = shared.submit(requests(1)[0])
    stream.close()
    assert future.cancel()
    assert [c.tokens for c in same.result()] == [c.tokens for c in expected]
    with pytest.raises(CancelledError):
        future.result()
    wait_for(lambda: not engine.busy)
    shared.close()
    assert engine.scheduler.pages.num_free == engine.scheduler.pages.size


def test_a_failure_reaches_all_who_wait_and_all_who_come_later():
    slow = Slow()
    shared = AsyncEngine(lambda: slow)
    waiting = [shared.submit(Request([1] * 100_000)) for _ in range(3)]
    stream = shared.stream(Request([1] * 100_000))
    next(stream)
    broken = shared.submit(Request([]))
    later = [broken, *waiting, shared.submit(Request([1]))]
    for future in later:
        with pytest.raises(IndexError, match="pop from empty list"):
            future.result(60)
    with pytest.raises(IndexError):
        list(stream)
    with pytest.raises(IndexError):
        shared.submit(Request([1])).result(60)
    shared.close()


def test_an_engine_that_cannot_be_loaded():
    def load():
        raise UserError("model=x: no such folder; give a folder or a hub id")

    shared = AsyncEngine(load)
    for _ in range(2):
        with pytest.raises(UserError, match=r"^model=x: no such folder"):
            shared.submit(Request([1])).result(60)
    shared.close()


def test_a_request_that_cannot_be_made_fails_alone():
    slow = Slow()
    shared = AsyncEngine(lambda: slow)
    good = shared.submit(Request([1] * 50))
    with pytest.raises(ZeroDivisionError):
        shared.submit(lambda tokenizer: 1 / 0).result(60)
    assert good.result(60)[0].answer == "0"
    assert shared.submit(lambda tokenizer: Request([1])).result(60)[0].answer == "1"
    shared.close()


def test_closing_ends_all_who_wait():
    slow = Slow()
    before = threading.active_count()
    shared = AsyncEngine(lambda: slow)
    futures = [shared.submit(Request([1] * 100_000)) for _ in range(3)]
    wait_for(lambda: slow.submitted == 3)
    shared.close()
    shared.close()
    assert threading.active_count() == before
    for future in (*futures, shared.submit(Request([1]))):
        with pytest.raises(EngineClosed):
            future.result(60)


def test_the_engine_is_loaded_with_the_first_request_and_freed_at_the_end():
    loaded = []

    def load():
        loaded.append(Slow())
        return loaded[-1]

    AsyncEngine(load).close()
    assert not loaded
    shared = AsyncEngine(load)
    assert shared.submit(Request([1])).result(60)
    assert len(loaded) == 1
    steps = loaded[0].steps
    time.sleep(0.05)
    assert loaded[0].steps == steps  # it waits, and does not step, while there is nothing to do
    shared.close()


def test_a_cancelled_request_is_dropped_between_two_steps():
    slow = Slow()
    shared = AsyncEngine(lambda: slow)
    seen = []
    future = shared.submit(Request([1] * 100_000), seen.append)
    wait_for(lambda: len(seen) > 3)
    assert future.cancel()
    wait_for(lambda: slow.cancelled == [0])
    assert shared.submit(Request([1])).result(60)[0].answer == "1"
    shared.close()
