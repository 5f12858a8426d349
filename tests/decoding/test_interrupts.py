"""What a server does with an engine: few steps at a time, cancel, end a thought, bound all tokens.

The oracle is the engine left alone: whatever happens to others, a request has its own tokens.
"""

import random

import jax
import pytest

from jaxs1.config import UserError
from jaxs1.decoding.base_engine import Steps
from jaxs1.decoding.buckets import ladder, powers_of_two
from jaxs1.decoding.budget import TokenKind
from jaxs1.decoding.params import Request, SamplingParams, ThinkingParams
from jaxs1.decoding.warm_up import warm_up
from tests.decoding.engines import HOT, complete_all, encode, open_tiny, write_model

pytestmark = pytest.mark.slow

LONG = ThinkingParams(max=40, num_waits=2, max_answer_tokens=8, min_answer_tokens=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupts")
    likes = {"<|im_start|>": 2.5, "<|im_end|>": 2.0, "\n": 2.0}
    write_model(folder, {encode(text)[0]: amount for text, amount in likes.items()}, context=256)
    return folder


@pytest.fixture(scope="module")
def engine(folder):
    return open_tiny(folder, max_num_seqs=4, kv_cache_tokens=1024, max_seq_len=128)


@pytest.fixture
def compilations():
    heard = []

    def listen(name, *_, **__):
        if name.endswith("backend_compile_duration"):
            heard.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield heard
    jax.monitoring.unregister_event_duration_listener(listen)


def request_of(rng, n=None):
    thinking = ThinkingParams(
        mode=rng.choice(["strict", "strict", "strict", "off"]),
        max=rng.choice([-1, 0, 5, 30]),
        num_waits=rng.choice([0, 1, 2]),
        max_answer_tokens=rng.choice([-1, 4, 12]),
        min_answer_tokens=rng.choice([1, 8]),
    )
    return Request(
        [rng.randrange(4, 300) for _ in range(rng.choice([1, 5, 30]))],
        thinking,
        rng.choice([SamplingParams(), HOT]),
        n or rng.choice([1, 1, 2]),
        seed=rng.randrange(100),
        max_tokens=rng.choice([-1, 1, 4, 20, 50]),
    )


def drain(engine, *steps):
    """Step until the engine is idle; completions by request and sample."""
    done = {}
    while engine.busy:
        for output in engine.step(*steps):
            if output.completion is not None:
                assert (output.request, output.sample) not in done
                done[output.request, output.sample] = output.completion
    return done


def all_free(engine):
    pages = engine.scheduler.pages
    return pages.num_free == pages.size and not engine.busy


def test_the_number_of_steps_changes_nothing_and_compiles_nothing(engine, compilations):
    rng = random.Random(1)
    requests = [request_of(rng) for _ in range(12)]
    expected = [[c.tokens for c in done] for done in complete_all(engine, requests)]
    compilations.clear()
    for limit, eager in [(1, False), (3, True), (8, True), (100, False)]:
        numbers = [engine.submit(request) for request in requests]
        done = drain(engine, Steps(limit, eager=eager))
        for number, request, tokens in zip(numbers, requests, expected, strict=True):
            assert [done[number, i].tokens for i in range(request.n)] == tokens
    assert not compilations


def test_at_most_limit_steps_and_eager_stops_where_one_ends(engine):
    """Answers of 3 and of 20 tokens: an eager run ends with the first of them."""
    lengths = {3: 0, 20: 0}
    for eager, first in [(False, 8), (True, 3)]:
        for length in lengths:
            thinking = ThinkingParams(mode="off", max_answer_tokens=length, min_answer_tokens=1)
            never = SamplingParams(temperature=5.0)  # hardly ever a stop
            lengths[length] = engine.submit(Request([7, 8], thinking, never, seed=2))
        outputs = engine.step(Steps(eager=eager))
        assert engine.num_steps == first
        assert {o.completion is not None for o in outputs} == {True, False}
        for number in lengths.values():
            engine.cancel(number)
    assert all_free(engine)


def test_max_tokens_bounds_all_tokens_and_leaves_an_answer(engine):
    rng = random.Random(2)
    requests = [request_of(rng) for _ in range(80)]
    notes = 0
    for request, completions in zip(requests, complete_all(engine, requests), strict=True):
        for done in completions:
            if request.max_tokens < 0:
                continue
            thinking, most = request.thinking, request.max_tokens
            assert len(done.tokens) <= most
            assert done.usage["thinking_tokens"] <= (thinking.max if thinking.max >= 0 else most)
            reserve = min(thinking.min_answer_tokens, max(1, most // 4))
            if thinking.max_answer_tokens >= 0:
                reserve = min(reserve, thinking.max_answer_tokens)
            # an answer that ended earlier chose so
            assert done.finish_reason == "stop" or done.usage["answer_tokens"] >= reserve
            if done.thinking_ended_by == "max_tokens":
                close = done.usage["completion_tokens"] - done.usage["thinking_tokens"]
                assert close >= reserve
            notes += "thinking is off" in (done.note or "")
            if most == 1:
                assert done.usage["thinking_tokens"] == 0 and len(done.tokens) == 1
    assert notes > 3
    assert all_free(engine)


def test_a_budget_above_max_tokens_is_clamped_and_says_so(engine):
    thinking = ThinkingParams(max=500, num_waits=9, min_answer_tokens=100)
    (done,) = complete_all(engine, [Request([9], thinking, HOT, max_tokens=64)])[0]
    close = len(encode("\n<|im_start|>answer"))
    assert done.note.startswith(f"thinking.max=500: clamped to {48 - close}")
    assert "max_tokens=64 leaves" in done.note
    assert done.thinking_ended_by == "max_tokens" and len(done.tokens) <= 64
    (error,) = complete_all(engine, [Request([9], ThinkingParams(min=60), max_tokens=64)])[0]
    assert error.error.startswith("thinking.min=60: does not fit, max_tokens=64 leaves")
    for bad in (0, -2):
        with pytest.raises(UserError, match=f"max_tokens={bad}: must be at least 1"):
            Request([9], max_tokens=bad)


def test_ending_a_thought_while_it_runs(engine):
    quiet = Request([5, 6, 7], ThinkingParams(max=30, max_answer_tokens=5), HOT, seed=1)
    (expected,) = complete_all(engine, [quiet])[0]
    thought = ThinkingParams(max=60, min=50, num_waits=3, max_answer_tokens=5, min_answer_tokens=1)
    number = engine.submit(Request([9, 8, 7], thought, HOT, n=2))
    other = engine.submit(quiet)
    early = engine.submit(Request([9, 8], thought, HOT))  # waits for pages or is prefilled
    assert engine.end_thinking(early)
    kinds = {0: [], 1: []}
    for _ in range(3):
        for output in engine.step(Steps(4)):
            if output.request == number:
                kinds[output.sample] += output.new_tokens.kinds
    assert engine.end_thinking(number)
    done = drain(engine)
    assert done[other, 0].tokens == expected.tokens
    assert done[early, 0].usage["thinking_tokens"] == 0
    close = encode("<|im_start|>answer")
    for sample in (0, 1):
        completion = done[number, sample]
        assert completion.thinking_ended_by == "client"
        before = sum(kind in (TokenKind.THINKING, TokenKind.WAIT) for kind in kinds[sample])
        assert before and completion.usage["thinking_tokens"] == before
        assert completion.usage["answer_tokens"] > 0
        written = completion.tokens[before : before + 3]
        assert close[0] in written  # behind a line break, unless the thought ends in one
    assert not engine.end_thinking(number) and not engine.end_thinking(99)
    assert all_free(engine)


@pytest.mark.parametrize("sizes", [powers_of_two, ladder])
def test_random_interruptions(folder, sizes):
    """Submit, step, cancel and end thoughts at random: all others keep their tokens."""
    rng = random.Random(4)
    engine = open_tiny(folder, max_num_seqs=4, kv_cache_tokens=512, max_seq_len=128)
    requests = [request_of(rng) for _ in range(60)]
    expected = [[c.tokens for c in done] for done in complete_all(engine, requests)]
    engine.buckets = sizes(rows=4, pages=2, tokens=engine.limits.prefill_chunk_tokens)
    numbers, touched, done = {}, set(), {}
    for i, request in enumerate(requests):
        numbers[engine.submit(request)] = i
        for _ in range(rng.randrange(3)):
            for output in engine.step(Steps(rng.choice([1, 2, 8]), 2, rng.random() < 0.5)):
                if output.completion is not None:
                    done[output.request, output.sample] = output.completion
        victim = rng.choice(list(numbers))
        if rng.random() < 0.2:
            engine.cancel(victim)
            touched.add(victim)
        elif rng.random() < 0.2 and engine.end_thinking(victim):
            touched.add(victim)
    done |= drain(engine)
    assert all_free(engine) and not engine.scheduler.pages._holders
    untouched = [number for number in numbers if number not in touched]
    assert len(untouched) > 25 and len(touched) > 10
    for number in untouched:
        i = numbers[number]
        samples = range(requests[i].n)
        assert [done[number, sample].tokens for sample in samples] == expected[i]


def test_a_ladder_is_compiled_before_the_first_request(folder, compilations):
    """A mixed load after `warm_up` compiles nothing and gives the tokens of exact shapes."""
    rng = random.Random(5)
    requests = [request_of(rng) for _ in range(40)]
    limits = {"max_num_seqs": 4, "kv_cache_tokens": 1024, "max_seq_len": 128}
    expected = complete_all(open_tiny(folder, **limits), requests)
    engine = open_tiny(folder, **limits)
    engine.buckets = ladder(rows=4, pages=2, tokens=engine.limits.prefill_chunk_tokens)
    names = list(warm_up(engine))
    assert len(names) == len(set(names)) and len(names) <= 14
    compilations.clear()
    for i, request in enumerate(requests):
        number = engine.submit(request)
        engine.step(Steps(1 + i % 5, eager=True))
        if i % 7 == 0:
            engine.end_thinking(number)
        if i % 11 == 0:
            engine.cancel(number)
    drain(engine)
    found = complete_all(engine, requests)
    assert not compilations
    assert [[c.tokens for c in done] for done in found] == [
        [c.tokens for c in done] for done in expected
    ]
