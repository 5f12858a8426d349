"""s1_readme and s1_harness through the engine give, token by token, what s1's loops give outside.

The outside is `tests.decoding.outside` over transformers' `generate`, which prefills every round
again. The models' logits lean towards what the loops look for, so that every branch occurs.
"""

import collections
import random

import pytest

from jaxs1.decoding.params import Request, ThinkingParams
from tests.decoding import outside
from tests.decoding.engines import (
    complete_all,
    encode,
    new_tokens,
    open_tiny,
    tokenizer,
    write_model,
)

pytestmark = pytest.mark.slow

PROMPTS = 120
CLOSE, ANSWER_PREFIX = "<|im_start|>answer", "\nFinal Answer:"


class Outside:
    """transformers behind the interface that the reference drivers expect."""

    def __init__(self, model, eos):
        self.model, self.eos = model, set(eos)

    def generate(self, prompt, max_tokens, stops, min_tokens=0):
        ends = self.eos | set(stops)
        ids = new_tokens(
            self.model, prompt, ends=ends, max_tokens=max_tokens, min_tokens=min_tokens
        )
        stopped = ids[-1] in ends
        return outside.Output(ids, ids[:-1] if stopped else ids, "stop" if stopped else "length")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    start, end, eos, newline = special_ids()
    model = write_model(folder, {start: 4.0, end: 3.2, eos: 2.6, newline: 3.0})
    return open_tiny(folder), Outside(model, [end, eos])


def special_ids():
    return [encode(t)[0] for t in ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "\n")]


def requests(mode, seed):
    rng = random.Random(seed)
    made = []
    for _ in range(PROMPTS):
        prompt = [rng.randrange(4, len(tokenizer()) - 2) for _ in range(rng.randrange(1, 20))]
        thinking = ThinkingParams(
            mode=mode,
            max=rng.choice([1, 3, 8, 16, 24]),
            num_waits=rng.choice([0, 1, 2, 4]),
            wait_strings=rng.choice([("Wait",), ("Hmm",)]),
            max_answer_tokens=rng.choice([1, 2, 6]),
        )
        made.append(Request(prompt, thinking))
    return made


def waits_of(completion):
    return sum(entry.kind == "wait" for entry in completion.interventions)


def test_readme(tiny):
    engine, driver = tiny
    start, end, eos, _ = special_ids()
    seen = collections.Counter()
    batch = requests("s1_readme", seed=1)
    for request, (mine,) in zip(batch, complete_all(engine, batch), strict=True):
        thinking = request.thinking
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
    assert len(seen) >= 5 + 2 + 2 + 4 + 2 and min(seen.values()) > 0, seen


def test_harness(tiny):
    """Where rounds went on beyond the budget, up to what was thrown away; see test_outside."""
    engine, driver = tiny
    start, end, *_ = special_ids()
    newlines = {i for i in range(len(tokenizer())) if tokenizer().decode([i]).endswith("\n")}
    close = encode(CLOSE)
    seen = collections.Counter()
    batch = requests("s1_harness", seed=2)
    for request, (mine,) in zip(batch, complete_all(engine, batch), strict=True):
        thinking = request.thinking
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
        if surplus and mine.tokens != expected:
            # the original chose the close by how the surplus ended; here it is a cut
            seen["other close"] += 1
            assert mine.tokens[:thought] == expected[:thought]
            assert "answer_prefix" in kinds
        else:
            seen["surplus"] += bool(surplus)
            assert mine.tokens == expected, request
        assert len(mine.thinking_ids) == thought
    assert seen["4 waits"] and min(seen.values()) > 0, seen
    assert seen["other close"] < PROMPTS / 4, seen
