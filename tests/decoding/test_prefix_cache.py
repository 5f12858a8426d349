"""Requests that begin alike share pages: fewer tokens are prefilled, the completions stay equal."""

import random

import pytest

from jaxs1.decoding.params import Request, SamplingParams, ThinkingParams
from jaxs1.decoding.prefix_cache import page_names
from jaxs1.model.kv_cache import PAD_POSITION, PAGE
from tests.decoding.engines import HOT, complete_all, encode, open_tiny, write_model

pytestmark = pytest.mark.slow

LIMITS = {"max_num_seqs": 4, "kv_cache_tokens": 20 * PAGE, "max_seq_len": 512}
SHORT = ThinkingParams(max=8, num_waits=1, max_answer_tokens=8, min_answer_tokens=1)


def test_a_name_is_all_tokens_up_to_the_end_of_its_page():
    rng = random.Random(1)
    ids = [rng.randrange(1000) for _ in range(3 * PAGE + 5)]
    names = page_names(ids)
    assert len(names) == len(set(names)) == 3
    for at in (0, PAGE - 1, PAGE, 2 * PAGE, 3 * PAGE):
        changed = page_names([*ids[:at], ids[at] + 1, *ids[at + 1 :]])
        assert [a == b for a, b in zip(names, changed, strict=True)] == [
            (i + 1) * PAGE <= at for i in range(3)
        ]
    assert page_names(ids[: 2 * PAGE]) == names[:2] and page_names(ids[: PAGE - 1]) == []
    assert not set(page_names(ids, "salt")) & set(names)


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prefix")
    likes = {"<|im_start|>": 2.5, "<|im_end|>": 2.0}
    write_model(folder, {encode(text)[0]: amount for text, amount in likes.items()}, context=512)
    cold, warm = open_tiny(folder, **LIMITS), open_tiny(folder, **LIMITS)
    warm.scheduler.prefix_caching = True
    return cold, warm


@pytest.fixture
def prefilled(engines, monkeypatch):
    """Numbers of prompt tokens that the warm engine prefills."""
    counts, run = [], engines[1].compiled.prefill

    def counting(params, cache, tokens, positions, table):
        counts.append(int((positions != PAD_POSITION).sum()))
        return run(params, cache, tokens, positions, table)

    monkeypatch.setattr(engines[1].compiled, "prefill", counting)
    return counts


def ids_of(rng, count):
    return [rng.randrange(4, 300) for _ in range(count)]


def cached_tokens(engine, request):
    """What the outputs of one request say."""
    return {output.cached_tokens for output in engine.stream([request])}


def test_random_requests_have_the_tokens_of_an_engine_without_it(engines):
    """Greedy and sampled, alone and several samples, in little memory: pages are evicted."""
    cold, warm = engines
    rng = random.Random(2)
    beginnings = [ids_of(rng, n) for n in (63, 64, 65, 128, 200)]
    requests = [
        Request(
            rng.choice(beginnings) + ids_of(rng, rng.choice([1, 2, 63, 64, 70])),
            SHORT, rng.choice([HOT, SamplingParams()]), n=rng.choice([1, 1, 3]), seed=i,
        )
        for i in range(40)
    ]  # fmt: skip
    expected = [[c.tokens for c in done] for done in complete_all(cold, requests)]
    for _ in range(2):
        assert [[c.tokens for c in done] for done in complete_all(warm, requests)] == expected
    pages = warm.scheduler.pages
    assert pages.num_free == pages.size and not pages._holders
    assert len(pages._names) == len(pages._named) == len(pages._cached) > 10


def test_only_what_is_new_is_prefilled(engines, prefilled):
    rng = random.Random(3)
    system = ids_of(rng, 200)  # three full pages
    for i in range(4):
        prompt = system + ids_of(rng, 30)
        prefilled.clear()
        cached = cached_tokens(engines[1], Request(prompt, SHORT))
        start = 2  # tokens of the start of thinking
        hits = 3 * PAGE if i else 0
        assert cached == {hits}
        assert abs(sum(prefilled) - (len(prompt) + start - 1 - hits)) <= 2


def test_equal_beginnings_are_prefilled_once_though_they_come_together(engines, prefilled):
    """Four at a time begin with the same pages: one fills them, the others adopt them."""
    cold, warm = engines
    rng = random.Random(7)
    system = ids_of(rng, 4 * PAGE)
    prompts = [system + ids_of(rng, rng.choice([1, 20, 40])) for _ in range(6)]
    requests = [Request(p, SHORT, HOT, n=rng.choice([1, 2]), seed=i) for i, p in enumerate(prompts)]
    expected = [[c.tokens for c in done] for done in complete_all(cold, requests)]
    assert [[c.tokens for c in done] for done in complete_all(warm, requests)] == expected
    own = sum(len(prompt) - len(system) + 4 for prompt in prompts)  # and a start of thinking
    assert sum(prefilled) <= len(system) + own
    pages = warm.scheduler.pages
    assert pages.num_free == pages.size and not pages._holders


def test_the_next_turn_finds_prompt_and_completion(engines, prefilled):
    """A tool loop: the next prompt begins with the previous prompt and its completion."""
    rng = random.Random(4)
    thinking = ThinkingParams(max=90, min=90, max_answer_tokens=8, min_answer_tokens=1)
    (first,) = complete_all(engines[1], [Request(ids_of(rng, 100), thinking, HOT)])[0]
    turn = [*first.prompt_ids, *first.tokens]
    full = (len(turn) - 1) // PAGE * PAGE
    assert full > len(first.prompt_ids)
    assert cached_tokens(engines[1], Request(turn + ids_of(rng, 9), SHORT)) == {full}


def test_salts_share_nothing(engines):
    rng = random.Random(5)
    prompt = ids_of(rng, 150)
    seen = [
        cached_tokens(engines[1], Request(prompt, SHORT, cache_salt=salt))
        for salt in ("", "a", "b", "a", "")
    ]
    assert seen == [{0}, {0}, {0}, {128}, {128}]


def test_a_prompt_that_is_cached_to_its_last_token(engines, prefilled):
    """All pages are found: nothing is left to prefill, and the completion is the same."""
    cold, warm = engines
    rng = random.Random(6)
    off = ThinkingParams(mode="off", max_answer_tokens=9, min_answer_tokens=1)
    request = Request(ids_of(rng, 2 * PAGE + 1), off, HOT)
    (expected,) = complete_all(cold, [request])[0]
    for _ in range(2):
        prefilled.clear()
        (done,) = complete_all(warm, [request])[0]
        assert done.tokens == expected.tokens
    assert prefilled == []
