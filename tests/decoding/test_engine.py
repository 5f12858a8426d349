"""The engine gives what transformers gives, whatever else runs beside it, and gives all back."""

import collections
import dataclasses
import random

import jax
import pytest

from jaxs1.config import UserError
from jaxs1.decoding.data_parallel import DataParallelEngine
from jaxs1.decoding.engine import Engine
from jaxs1.decoding.params import Request, SamplingParams, ThinkingParams
from jaxs1.model.kv_cache import PAD_POSITION
from tests.decoding.engines import (
    HOT,
    VOCAB,
    complete_all,
    encode,
    new_tokens,
    open_tiny,
    tokenizer,
    write_model,
)
from tests.decoding.words import Words

ENDS = ("<|im_end|>", "<|endoftext|>")
#: Prompt lengths around the edges of pages and of pieces of a prefill.
LENGTHS = [1, 2, 31, 32, 33, 63, 64, 65, 66, 100, 5, 17, 3]
SHORT = [n for n in LENGTHS if n < 40]
#: So little that sequences must wait for pages and slots.
SMALL = {
    "max_num_seqs": 2,
    "kv_cache_tokens": 256,
    "max_seq_len": 128,
    "decode_steps": 5,
    "prefill_chunk_tokens": 7,
}


def folder_of(tmp_path_factory, name, **options):
    folder = tmp_path_factory.mktemp(name)
    likes = {"<|im_start|>": 2.5, "<|im_end|>": 2.0, "<|endoftext|>": 1.5, "\n": 2.0}
    ids = {encode(text)[0]: amount for text, amount in likes.items()}
    # the model's favourites are ids that the tokenizer does not have
    ids |= dict.fromkeys(range(len(tokenizer()), VOCAB), 12.0)
    return folder, write_model(folder, ids, **options)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return folder_of(tmp_path_factory, "tiny")


@pytest.fixture(scope="module")
def engine(tiny):
    return open_tiny(tiny[0])


@pytest.fixture(scope="module")
def small(tiny):
    return open_tiny(tiny[0], **SMALL)


@pytest.fixture
def engine_of(request):
    return request.getfixturevalue


def prompt_of(rng, length):
    return [rng.randrange(4, len(tokenizer()) - 2) for _ in range(length)]


def mixed_requests(count, seed, lengths=SHORT):
    """Greedy and sampled, forced and free, one and several samples."""
    rng = random.Random(seed)
    requests = []
    for _ in range(count):
        thinking = ThinkingParams(
            mode=rng.choice(["strict", "strict", "off"]),
            max=rng.choice([-1, 0, 4, 12]),
            num_waits=rng.choice([0, 1, 3]),
            max_answer_tokens=rng.choice([1, 5, 12]),
            min_answer_tokens=1,
        )
        prompt = prompt_of(rng, rng.choice(lengths))
        sampling = rng.choice([SamplingParams(), HOT, HOT])
        requests.append(
            Request(prompt, thinking, sampling, rng.choice([1, 1, 3]), seed=len(prompt))
        )
    return requests


def tokens_of(results):
    return [[c.tokens for c in completions] for completions in results]


@pytest.mark.parametrize(("size", "lengths"), [("engine", SHORT), ("small", LENGTHS)])
def test_greedy_is_transformers(tiny, size, lengths, engine_of):
    _, model = tiny
    rng = random.Random(1)
    thinking = ThinkingParams(mode="off", max_answer_tokens=20, min_answer_tokens=1)
    requests = [Request(prompt_of(rng, n), thinking) for n in lengths]
    engine = engine_of(size)
    ends = [encode(text)[0] for text in ENDS]
    finished = collections.Counter()
    for request, (mine,) in zip(requests, complete_all(engine, requests), strict=True):
        expected = new_tokens(model, request.prompt_ids, ends=ends, max_tokens=20)
        assert mine.tokens == expected
        finished[mine.finish_reason] += 1
    assert finished["stop"] > 1 and finished["length"] > 1, finished
    assert engine.scheduler.pages.num_free == engine.scheduler.pages.size


def test_alone_in_a_batch_or_late(engine, small):
    """The same tokens, greedy and sampled: nothing depends on neighbours or on the time."""
    requests = mixed_requests(16, seed=2)
    together = complete_all(engine, requests)
    alone = [complete_all(engine, [request])[0] for request in requests]
    assert tokens_of(alone) == tokens_of(together)
    # late: others are running, and slots have been used before
    first = {}
    for request in mixed_requests(6, seed=3):
        engine.submit(request)
    numbers = {}
    late = collections.defaultdict(dict)
    for i in range(10_000):
        if i < len(requests):
            numbers[engine.submit(requests[i])] = i
        for event in engine.step():
            if event.completion is not None and event.request in numbers:
                late[numbers[event.request]][event.sample] = event.completion.tokens
            first.setdefault(event.request, i)
        if not engine.busy:
            break
    assert len(set(first.values())) > 3  # they really came at different times
    assert [[late[i][s] for s in sorted(late[i])] for i in range(16)] == tokens_of(together)
    # a budget without limit is what the context holds, which is another one here
    bounded = [i for i, r in enumerate(requests) if r.thinking.max >= 0]
    assert len(bounded) > 8
    few = complete_all(small, [requests[i] for i in bounded])
    assert tokens_of(few) == [tokens_of(together)[i] for i in bounded]
    assert engine.scheduler.pages.num_free == engine.scheduler.pages.size


@pytest.mark.parametrize("length", [1, 62, 63, 100])
def test_samples_share_the_prefill(small, length):
    engine = small
    rng = random.Random(length)
    thinking = ThinkingParams(max=6, max_answer_tokens=6, min_answer_tokens=1)
    prompt = prompt_of(rng, length)
    request = Request(prompt, thinking, HOT, seed=5)
    prefilled = []
    run = engine.compiled.prefill

    def counting(params, cache, tokens, positions, table):
        prefilled.append(int((positions != PAD_POSITION).sum()))
        return run(params, cache, tokens, positions, table)

    engine.compiled.prefill = counting
    try:
        (five,) = complete_all(engine, [Request(prompt, thinking, request.sampling, 5, 5)])
    finally:
        engine.compiled.prefill = run
    assert sum(prefilled) == len(five[0].prompt_ids) - 1
    assert [c.index for c in five] == list(range(5))
    assert len({tuple(c.tokens) for c in five}) == 5
    (one,) = complete_all(engine, [request])
    (three,) = complete_all(engine, [Request(prompt, thinking, request.sampling, 3, 5)])
    assert tokens_of([three, one]) == [tokens_of([five])[0][:3], tokens_of([five])[0][:1]]
    (other,) = complete_all(engine, [Request(prompt, thinking, request.sampling, 1, 6)])
    assert other[0].tokens != one[0].tokens
    greedy = Request(prompt, thinking, n=4)
    (same,) = complete_all(engine, [greedy])
    assert len({tuple(c.tokens) for c in same}) == 1
    assert engine.scheduler.pages.num_free == engine.scheduler.pages.size


def test_no_id_beyond_the_tokenizer(engine):
    """The model prefers ids that the tokenizer does not have; nobody gets one."""
    requests = mixed_requests(40, seed=4)
    tokens = {t for result in complete_all(engine, requests) for c in result for t in c.tokens}
    assert len(tokens) > 100 and max(tokens) < len(tokenizer()) < VOCAB


def test_no_compilation_after_the_first_time(engine):
    compiled = []

    def listen(name, *_, **__):
        if name.endswith("backend_compile_duration"):
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.jit(lambda x: x + 1)(0)
        assert compiled  # the listener hears
        requests = mixed_requests(20, seed=5)
        first = complete_all(engine, requests)
        compiled.clear()
        again = complete_all(engine, requests)
        # other tokens and settings, the same shapes
        other = [Request(r.prompt_ids[::-1], r.thinking, r.sampling, r.n, 9) for r in requests]
        complete_all(engine, other[:1])
        assert not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert tokens_of(first) == tokens_of(again)


@pytest.mark.parametrize("parallel", [{"replicas": 2}, {"tensor": 2}])
def test_devices_give_the_tokens_of_one(tiny, engine, parallel):
    rng = random.Random(6)
    thinking = ThinkingParams(max=12, num_waits=1, max_answer_tokens=12, min_answer_tokens=1)
    prompts = [prompt_of(rng, n) for n in (1, 5, 17, 9)]
    requests = [Request(p, thinking, s, seed=4) for p in prompts for s in (SamplingParams(), HOT)]
    several = open_tiny(tiny[0], max_num_seqs=4, **parallel)
    parts = several.engines if isinstance(several, DataParallelEngine) else [several]
    devices = [set(part.cache.k[0].sharding.device_set) for part in parts]
    assert len(parts) == parallel.get("replicas", 1)
    assert sum(map(len, devices)) == len(set.union(*devices)) == 2
    assert tokens_of(complete_all(several, requests)) == tokens_of(complete_all(engine, requests))
    assert all(
        part.scheduler.pages.num_free == part.scheduler.pages.size and part.submitted
        for part in parts
    )


def test_pages_come_back(small):
    """A random workload in little memory, with errors in it, leaves every page free."""
    requests = mixed_requests(40, seed=7, lengths=LENGTHS)
    requests[3] = Request([], requests[3].thinking)
    requests[11] = Request(prompt_of(random.Random(0), 127), n=2)
    results = complete_all(small, requests)
    assert [i for i, r in enumerate(results) if r[0].error] == [3, 11]
    assert (
        small.scheduler.pages.num_free == small.scheduler.pages.size
        and not small.scheduler.pages._holders
    )
    assert not small.busy and small.scheduler.rows == [None] * 2


def test_errors_leave_the_others_whole(tiny, engine):
    thinking = ThinkingParams(max=4, max_answer_tokens=4, min_answer_tokens=1)
    good = Request(prompt_of(random.Random(8), 20), thinking)
    ids = list(good.prompt_ids)
    bad = {
        "prompt: is empty": Request([], thinking),
        "prompt of 204 tokens: leaves 0 of the context's 64": Request(ids * 10, thinking),
        "prompt: id 330 is not in the tokenizer; give ids from 0 to 321": Request([330], thinking),
        "prompt: id -1 is not in the tokenizer": Request([-1], thinking),
        "thinking.wait_strings='': encodes to no token": Request(
            ids, ThinkingParams(num_waits=1, wait_strings=("",))
        ),
        "thinking.min=60: does not fit": Request(ids, ThinkingParams(min=60, min_answer_tokens=1)),
    }
    requests = [good]
    for request in bad.values():
        requests += [request, good]
    results = complete_all(engine, requests)
    (alone,) = complete_all(engine, [good])
    for (expected, request), (done,) in zip(bad.items(), results[1::2], strict=True):
        assert done.finish_reason == "error" and done.error.startswith(expected)
        assert "\n" not in done.error
        assert done.prompt_ids == list(request.prompt_ids) and done.tokens == []
    assert all(tokens_of([result]) == tokens_of([alone]) for result in results[::2])
    assert engine.scheduler.pages.num_free == engine.scheduler.pages.size
    clamped = Request(ids, ThinkingParams(max=500, max_answer_tokens=2, min_answer_tokens=2))
    (done,) = complete_all(engine, [clamped])[0]
    assert done.note.startswith("thinking.max=500: clamped to 34") and done.error is None
    with pytest.raises(UserError, match="n=0: must be at least 1"):
        Request(ids, n=0)


def test_a_tokenizer_without_the_texts_of_s1(engine):
    """R1's distills have no <|im_start|>: they need think_tags, and an engine to ask it of."""

    class Tagged(Words):
        vocabulary = tuple("xx" if w == "<|im_start|>" else w for w in Words.vocabulary)

    limits = dataclasses.replace(engine.limits, max_num_seqs=1)
    tagged = Engine(engine.model, engine.params, Tagged("<think>", "</think>"), limits,
                    num_pages=3, cache_dtype="float32")  # fmt: skip
    assert (
        tagged.submit(Request([8], ThinkingParams(preset="think_tags", min_answer_tokens=1))) == 0
    )
    assert tagged.submit(Request([8], ThinkingParams(mode="off", min_answer_tokens=1))) == 1
    assert tagged.submit(Request([8], ThinkingParams(min_answer_tokens=1))) == 2  # auto knows it
    assert not tagged._refused
    tagged.submit(Request([8], ThinkingParams(preset="s1", min_answer_tokens=1)))
    (refused,) = tagged._refused
    assert refused.request == 3
    assert "has no token <|im_start|>; set thinking.preset" in refused.completion.error


def test_too_little_memory_for_several_samples(tiny):
    """The second sample needs a copy of the page in which the prompt ends."""
    engine = open_tiny(tiny[0], kv_cache_tokens=64)
    (two,) = complete_all(
        engine, [Request(prompt_of(random.Random(9), 20), ThinkingParams(min_answer_tokens=1), n=2)]
    )
    assert [c.error for c in two] == [two[0].error] * 2
    assert two[0].error.startswith("limits.kv_cache_tokens=64: too small for this request")
