"""s1_readme and s1_harness through the engine give, token by token, what s1's loops give outside.

The outside is `tests.decoding.outside` over transformers' `generate`, which prefills every round
again. The models' logits lean towards what the loops look for, so that every branch occurs.
"""

import collections
import random

import pytest

from jaxs1.decoding.params import Request, SamplingParams, ThinkingParams
from tests.decoding import outside
from tests.decoding.engines import (
    complete_all,
    encode,
    new_tokens,
    open_tiny,
    tokenizer,
    write_model,
)

PROMPTS = [24, pytest.param(240, marks=pytest.mark.slow)]
CLOSE, ANSWER_PREFIX = "<|im_start|>answer", "\nFinal Answer:"


class Outside:
    """transformers behind the interface that the reference drivers expect."""

    def __init__(self, model, eos):
        self.model, self.eos, self.penalty = model, set(eos), 1.0

    def generate(self, prompt, max_tokens, stops, min_tokens=0, *, drawn=0):
        ends = self.eos | set(stops)
        ids = new_tokens(
            self.model, prompt, ends=ends, max_tokens=max_tokens, min_tokens=min_tokens,
            penalty=self.penalty,
        )  # fmt: skip
        stopped = ids[-1] in ends
        return outside.Output(ids, ids[:-1] if stopped else ids, "stop" if stopped else "length")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    start, end, eos, newline = special_ids()
    model = write_model(folder, {start: 4.0, end: 3.2, eos: 2.6, newline: 3.0})
    return open_tiny(folder, max_seq_len=192, kv_cache_tokens=4096), Outside(model, [end, eos])


def special_ids():
    return [encode(t)[0] for t in ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "\n")]


def requests(mode, seed, number):
    rng = random.Random(seed)
    made = []
    for _ in range(number):
        prompt = [rng.randrange(4, len(tokenizer()) - 2) for _ in range(rng.randrange(1, 20))]
        thinking = ThinkingParams(
            mode=mode,
            max=rng.choice([1, 3, 8, 16, 24]),
            num_waits=rng.choice([0, 1, 2, 4]),
            wait_strings=rng.choice([("Wait",), ("Hmm",)]),
            max_answer_tokens=rng.choice([1, 2, 6]),
        )
        sampling = SamplingParams(repetition_penalty=rng.choice([1.0, 1.0, 1.3]))
        made.append(Request(prompt, thinking, sampling))
    return made


def waits_of(completion):
    return sum(entry.kind == "wait" for entry in completion.interventions)


@pytest.mark.parametrize("prompts", PROMPTS)
def test_readme(tiny, prompts):
    engine, driver = tiny
    start, end, eos, _ = special_ids()
    seen = collections.Counter()
    batch = requests("s1_readme", 1, prompts)
    for request, (mine,) in zip(batch, complete_all(engine, batch), strict=True):
        thinking = request.thinking
        driver.penalty = request.sampling.repetition_penalty
        expected = outside.readme(
            driver,
            [*request.prompt_ids, *encode("<|im_start|>think")],
            thinking_budget=thinking.max,
            num_ignore=thinking.num_waits,
            wait=encode(thinking.wait_strings[0]),
            stops=[start, end],
            answer_stops=[end],
            max_answer_tokens=thinking.max_answer_tokens,
        )
        assert mine.tokens == expected, request
        begins = expected[len(mine.thinking_ids)]
        seen[f"{waits_of(mine)} waits"] += 1
        seen[f"wait given up: {waits_of(mine) < thinking.num_waits}"] += 1
        seen[f"ended by {mine.thinking_ended_by}"] += 1
        seen[f"answer begins: {begins if begins in (start, end, eos) else 'text'}"] += 1
        seen[f"finish {mine.finish_reason}"] += 1
    if prompts == 240:
        assert len(seen) >= 5 + 2 + 2 + 4 + 2 and min(seen.values()) > 0, seen


@pytest.mark.parametrize("prompts", PROMPTS)
def test_harness(tiny, prompts):
    """Also where rounds continue beyond the budget: that is thrown away but chooses the close."""
    engine, driver = tiny
    start, end, *_ = special_ids()
    newlines = {i for i in range(len(tokenizer())) if tokenizer().decode([i]).endswith("\n")}
    close = encode(CLOSE)
    seen = collections.Counter()
    batch = requests("s1_harness", 2, prompts)
    for request, (mine,) in zip(batch, complete_all(engine, batch), strict=True):
        thinking = request.thinking
        driver.penalty = request.sampling.repetition_penalty
        expected, thought, surplus = outside.harness(
            driver,
            [*request.prompt_ids, *encode("<|im_start|>think")],
            thinking_budget=thinking.max,
            num_ignore=thinking.num_waits or None,
            wait=encode(thinking.wait_strings[0]),
            stops=[start, end],
            close=close,
            answer_prefix=encode(CLOSE + ANSWER_PREFIX)[len(close) :],
            newline=encode("\n"),
            newlines=newlines,
            answer_stops=[end],
            max_answer_tokens=thinking.max_answer_tokens,
        )
        kinds = [entry.kind for entry in mine.interventions]
        seen["answer_prefix" if "answer_prefix" in kinds else "plain close"] += 1
        seen[f"{waits_of(mine)} waits"] += 1
        part = mine.thinking_ids[-1:] == encode("Hmm")[:1] and mine.forced[thought - 1]
        seen["wait cut short"] += part
        seen["line break left out"] += "answer_prefix" in kinds and expected[thought] == start
        seen["line break written"] += "answer_prefix" in kinds and expected[thought] != start
        seen[f"ended by {mine.thinking_ended_by}"] += 1
        seen[f"finish {mine.finish_reason}"] += 1
        if surplus:
            penalised = "penalised " * (driver.penalty != 1)
            seen[f"{penalised}surplus, ended by {mine.thinking_ended_by}"] += 1
        assert mine.tokens == expected, request
        assert len(mine.thinking_ids) == thought
        assert mine.usage["surplus_tokens"] == len(surplus)
        assert mine.usage["completion_tokens"] == len(expected)
    ended = [f"{p}surplus, ended by {by}" for p in ("", "penalised ") for by in ("model", "budget")]
    if prompts == 240:
        assert seen["4 waits"] and min(seen.values()) > 0, seen
        assert min(seen[how] for how in ended) > 3, seen
    else:
        assert sum(seen[how] for how in ended) > 3, seen
