"""Deltas joined are the text of the ids, over random ids, kinds, stops and cuts."""

import random

import pytest

from jaxs1.decoding.budget import TokenKind
from jaxs1.decoding.controls import SequenceLimits
from jaxs1.decoding.outputs import Completion, StreamOutput, TokenLog
from jaxs1.serving.choice import Choice
from tests.decoding.engines import encode, tokenizer

LIMITS = SequenceLimits(budget=100, max_new_tokens=200, num_pages=4)
CLOSE = encode("\n<|im_start|>answer")
WAIT = encode("Wait, \u20ac")


def log_of(rng, size):
    """A thought with Waits, its close, and an answer, of random ids: half characters too."""
    count = len(tokenizer())
    log = TokenLog()

    def add(ids, kind, forced=False):
        log.extend(TokenLog(list(ids), [forced] * len(ids), [int(kind)] * len(ids)))

    waits = rng.choice([0, 0, 1, 2])
    for i in range(waits + 1):
        add(rng.choices(range(count), k=rng.randint(1, size)), TokenKind.THINKING)
        if i < waits:
            add(WAIT, TokenKind.WAIT, True)
    add(CLOSE, TokenKind.CLOSE, True)
    add(rng.choices(range(count), k=rng.randrange(size)), TokenKind.ANSWER)
    return log, waits


def outputs_of(log, rng, done):
    """The log in random cuts; empty outputs among them, the completion in the last one."""
    at = 0
    while at < len(log.tokens):
        end = min(len(log.tokens), at + rng.choice([0, 1, 1, 2, 5, 32]))
        part = TokenLog(log.tokens[at:end], log.forced[at:end], log.kinds[at:end])
        at = end
        yield StreamOutput(0, 0, part, done if at == len(log.tokens) else None, "model")


def run(choice, outputs):
    texts = {"reasoning": "", "content": "", "wait": ""}
    for output in outputs:
        for delta in choice.add(output):
            assert delta.text
            texts[delta.channel] += delta.text
            if delta.forced == "wait":
                texts["wait"] += delta.text
        if choice.done:
            break
    return texts


def test_deltas_joined_are_the_decoded_ids():
    rng = random.Random(1)
    done = Completion([], finish_reason="length")
    for i in range(10_000):
        log, waits = log_of(rng, 12)
        choice = Choice(0, tokenizer(), LIMITS, "strict")
        texts = run(choice, outputs_of(log, rng, done))
        thinking = log.of_kind(TokenKind.THINKING, TokenKind.WAIT)
        assert texts["reasoning"] == tokenizer().decode(thinking).strip(), i
        answer = tokenizer().decode(log.of_kind(TokenKind.ANSWER), skip_special_tokens=True)
        assert texts["content"] == answer.strip(), i
        assert choice.usage.waits == waits and choice.usage.thinking == len(thinking)
        assert choice.usage.completion == len(log.tokens)
        assert choice.usage.forced == sum(log.forced)
        assert choice.finish_reason == "length" and choice.stop_reason is None


def test_stops_cut_the_answer_and_the_count_at_the_same_token():
    """Whatever the cuts: the answer ends before the stop, the tokens with the one that ends it."""
    rng = random.Random(2)
    done = Completion([], finish_reason="length")
    stopped = 0
    for _ in range(1000):
        log, _ = log_of(rng, 12)
        decoded = tokenizer().decode(log.of_kind(TokenKind.ANSWER), skip_special_tokens=True)
        if len(decoded) < 3:
            continue
        at = rng.randrange(len(decoded) - 1)
        stop = decoded[at : at + rng.randint(1, 4)]
        if "\ufffd" in stop:
            continue
        results = []
        for _ in range(2):
            choice = Choice(0, tokenizer(), LIMITS, "strict", stops=(stop,))
            texts = run(choice, outputs_of(log, rng, done))
            assert texts["content"] == decoded.split(stop)[0].strip()
            assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
            results.append(choice.usage)
        assert results[0] == results[1] and results[0].completion <= len(log.tokens)
        stopped += results[0].completion < len(log.tokens)
    assert stopped > 200


@pytest.mark.parametrize("begins", [True, False])
def test_a_close_that_the_model_writes_is_no_answer(begins):
    """Mode s1_readme leaves the close to the model; it is part of the answer's ids only."""
    rng = random.Random(3)
    skipped = tuple(encode("<|im_start|>answer"))
    for size in range(6):
        answer = [*(skipped if begins else skipped[:1]), *encode("The answer is 42")[:size]]
        log = TokenLog(answer, [False] * len(answer), [int(TokenKind.ANSWER)] * len(answer))
        choice = Choice(0, tokenizer(), LIMITS, "s1_readme", skipped=skipped)
        texts = run(choice, outputs_of(log, rng, Completion([], finish_reason="stop")))
        rest = answer[len(skipped) :] if begins else answer
        expected = tokenizer().decode(rest, skip_special_tokens=True).strip()
        assert texts["content"] == expected
