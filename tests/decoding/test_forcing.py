"""Mixed batches through a real engine do what was requested: every request, every token.

Greedy requests are replayed: one run of the model over the finished ids gives its choice at every
step, the overwritten ones too, and the plain-Python oracle must make the same completion of them.
"""

import collections
import dataclasses
import functools
import random

import jax
import numpy as np
import pytest

from convert.weights import load_params, open_weights
from jaxs1.decoding.budget import TokenKind
from jaxs1.decoding.controls import capacity, fit
from jaxs1.decoding.outputs import TokenLog
from jaxs1.decoding.params import Delimiters, Request, SamplingParams, ThinkingParams
from jaxs1.decoding.tokenized_thinking import tokenize_thinking
from jaxs1.model import transformer
from jaxs1.model.kv_cache import PAGE
from tests.decoding.cases import KINDS
from tests.decoding.engines import HOT, LIMITS, encode, open_tiny, tokenizer, write_model
from tests.decoding.oracle import Case, Oracle
from tests.tiny_models import FLOAT32, one_device

pytestmark = pytest.mark.slow

REQUESTS = 1100
CONTEXT = LIMITS.max_seq_len
#: Tokens that models of this test like, so that an end of two of them is met by chance.
SPELLED = ("!", "?")
WAITS = [("Wait",), ("Wait", "Hmm"), ("\nAlternatively, let us", "Wait", "Hmm,")]


@functools.cache
def delimiters():
    own = Delimiters(ends=("".join(SPELLED), "<|im_start|>"))
    back = Delimiters(start="<think>")
    return [("s1", Delimiters()), ("think_tags", Delimiters()), ("s1", own), ("think_tags", back)]


def random_request(rng):
    mode = rng.choice(["strict"] * 7 + ["s1_readme", "s1_harness", "off"])
    preset, own = rng.choice(delimiters()[: 4 if mode in ("strict", "off") else 2])
    most = rng.choice([-1, 0, 1, 2, 5, 9, 16, 25, 1000])
    thinking = ThinkingParams(
        mode=mode,
        preset=preset,
        delimiters=own,
        max=most,
        min=rng.choice([0, 0, 0, 1, 4, 9]) if most < 0 else min(rng.choice([0, 0, 2, 9]), most),
        num_waits=rng.choice([0, 0, 1, 2, 5]),
        wait_strings=rng.choice(WAITS),
        answer_prefix=rng.choice([None, "", "\nFinal Answer:"]),
        max_answer_tokens=rng.choice([1, 3, 8, -1]),
        min_answer_tokens=rng.choice([1, 3]),
    )
    sampling = rng.choice([SamplingParams(), HOT])
    length = rng.choice([1, 3, 8, 14, 25])  # so long that contexts become tiny
    prompt = [rng.randrange(4, len(tokenizer()) - 2) for _ in range(length)]
    return Request(prompt, thinking, sampling, n=rng.choice([1, 1, 1, 2]), seed=rng.randrange(99))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(request, tokenized thinking, completion, token log) of every sequence, and the model."""
    folder = tmp_path_factory.mktemp("forcing")
    texts = {"<|im_start|>": 3.0, "</think>": 3.0, "<|im_end|>": 2.4, "<|endoftext|>": 2.0}
    texts |= {"\n": 2.5, "<think>": 2.2, SPELLED[0]: 3.2, SPELLED[1]: 3.2}
    write_model(folder, {encode(text)[0]: amount for text, amount in texts.items()})
    engine = open_tiny(folder)
    rng = random.Random(0)
    requests = [random_request(rng) for _ in range(REQUESTS)]
    written, done = collections.defaultdict(TokenLog), {}
    for event in engine.stream(requests):
        written[event.request, event.sample].extend(event.new_tokens)
        if event.completion is not None:
            done[event.request, event.sample] = event.completion
    assert len(done) == sum(r.n for r in requests)
    runs = []
    for (i, sample), completion in sorted(done.items()):
        assert completion.error is None and completion.index == sample
        tokenized = tokenize_thinking(requests[i].thinking, tokenizer())
        runs.append((requests[i], tokenized, completion, written[i, sample]))
    weights = open_weights(str(folder))
    shape = transformer.abstract(weights.architecture, FLOAT32, one_device())
    return runs, transformer.with_parameters(shape, load_params(weights, shape))


def limits_of(tokenized, prompt_length):
    """Tokens behind the prompt that context and pages hold, and the clamped budget."""
    limit = fit(tokenized, prompt_length, CONTEXT).budget
    pages = -(-min(CONTEXT, prompt_length + capacity(tokenized, limit, CONTEXT)) // PAGE)
    return min(CONTEXT, pages * PAGE) - prompt_length, limit


def strict(runs):
    return [run for run in runs if run[0].thinking.mode == "strict"]


def test_thinking_keeps_to_its_budget_and_reaches_its_minimum(ran):
    runs = strict(ran[0])
    assert len(runs) > 700
    ends = collections.Counter()
    for request, tokenized, done, _ in runs:
        used = len(done.thinking_ids)
        max_new_tokens, limit = limits_of(tokenized, len(done.prompt_ids))
        assert limit < 0 or used <= limit
        assert used >= request.thinking.min
        assert used + tokenized.reserved_tokens <= max_new_tokens
        clamped = limit != request.thinking.max
        assert clamped == (done.note is not None)
        if clamped:
            assert done.note.startswith(f"thinking.max={request.thinking.max}: clamped to {limit}")
        if done.thinking_ended_by == "budget":
            assert used == limit
        ends[done.thinking_ended_by, clamped] += 1
    assert min(ends[by, False] for by in ("model", "budget", "context")) > 20, ends
    assert ends["budget", True] > 20, ends


def test_waits_are_as_requested_or_did_not_fit(ran):
    seen = collections.Counter()
    for request, tokenized, done, written in strict(ran[0]):
        thinking = request.thinking
        max_new_tokens, limit = limits_of(tokenized, len(done.prompt_ids))
        waits = [entry for entry in done.interventions if entry.kind == "wait"]
        assert len(waits) <= thinking.num_waits
        assert [w.string for w in waits] == [i % len(tokenized.waits) for i in range(len(waits))]
        used = 0
        for position, kind in enumerate(written.kinds):
            closed = kind == TokenKind.CLOSE and written.kinds[position - 1] != TokenKind.CLOSE
            said = sum(w.position < position for w in waits)
            if (closed or position == 0 == kind) and said < thinking.num_waits:
                text = tokenized.waits[said % len(tokenized.waits)]
                no_context = position + len(text) + 1 > max_new_tokens - tokenized.reserved_tokens
                short = 0 <= limit < used + len(text) + 1
                assert no_context or short or used == limit, (request, done)
                seen["no context" if no_context else "no budget"] += 1
            used += kind in (TokenKind.THINKING, TokenKind.WAIT)
        seen["all" if len(waits) == thinking.num_waits else "fewer"] += thinking.num_waits > 0
    assert min(seen[x] for x in ("no context", "no budget", "all", "fewer")) > 20, seen


def test_what_a_completion_says_is_in_its_tokens(ran):
    for request, tokenized, done, written in ran[0]:
        parts = collections.Counter(written.kinds)
        assert (done.tokens, done.forced) == (written.tokens, written.forced)
        assert TokenKind.PAD not in parts
        assert done.prompt_ids == [*request.prompt_ids, *tokenized.start]
        assert len(done.prompt_ids) + len(done.tokens) <= CONTEXT
        assert max(done.tokens) < len(tokenizer())
        usage = done.usage
        assert usage["prompt_tokens"] == len(done.prompt_ids)
        assert usage["completion_tokens"] == len(done.tokens)
        assert usage["thinking_tokens"] == len(done.thinking_ids)
        assert usage["thinking_tokens"] == parts[TokenKind.THINKING] + parts[TokenKind.WAIT]
        assert usage["answer_tokens"] == len(done.answer_ids)
        stopped = done.finish_reason == "stop"
        assert parts[TokenKind.ANSWER] - usage["answer_tokens"] == stopped
        assert usage["forced_tokens"] == sum(done.forced)
        assert done.thinking == tokenizer().decode(done.thinking_ids).strip()
        answer = tokenizer().decode(done.answer_ids, skip_special_tokens=True)
        assert answer.strip().endswith(done.answer)
        if request.thinking.mode != "s1_readme":
            assert done.answer == answer.strip()
        assert done.settings["thinking"] == dataclasses.asdict(request.thinking)
        assert (done.seed, done.finish_reason in ("stop", "length")) == (request.seed, True)
        if request.thinking.max_answer_tokens >= 0:
            assert parts[TokenKind.ANSWER] <= request.thinking.max_answer_tokens


def test_interventions_point_at_what_was_written(ran):
    """From each entry's position stand its text's tokens, forced; together they are all forced."""
    for _, tokenized, done, written in ran[0]:
        explained = 0
        for position, kind, string in done.interventions:
            if kind == "wait":
                texts = [tokenized.waits[string]]
            elif kind == "answer_prefix":
                texts = [tokenized.answer_prefix]
            else:  # whole, without its line break, or the rest of what the model began
                whole = tokenized.line_break + tokenized.close
                texts = [whole[i:] for i in range(len(whole))]
            length = 0
            while done.forced[position + length : position + length + 1] == [True] and (
                written.kinds[position + length] == written.kinds[position]
            ):
                length += 1
            length = min(length, max(map(len, texts)))
            assert length > 0
            found = tuple(done.tokens[position : position + length])
            cut = position + length == len(done.tokens) or kind == "wait"
            assert any(found == text or (cut and text[:length] == found) for text in texts)
            assert not done.forced[position - 1] or position == 0 or kind != "wait" or (
                written.kinds[position - 1] != TokenKind.THINKING
            )  # fmt: skip
            explained += length
        assert explained == sum(done.forced)


def case_of(request, tokenized, done):
    """The request for the oracle."""
    max_new_tokens, limit = limits_of(tokenized, len(done.prompt_ids))
    thinking = request.thinking
    lists = functools.partial(map, list)
    whole = [
        list(ids)
        for ids, follows in zip(tokenized.ends, tokenized.resume, strict=True)
        if follows == len(tokenized.close) and tokenized.close[: len(ids)] != ids
    ]
    harness = thinking.mode == "s1_harness"
    return Case(
        mode="s1_readme" if thinking.mode == "off" else thinking.mode,
        thinking_budget=limit,
        min_thinking=max(thinking.min, int(harness and thinking.num_waits > 0)),
        num_waits=thinking.num_waits,
        max_answer_tokens=thinking.max_answer_tokens,
        min_answer_tokens=tokenized.reserved_tokens - len(tokenized.cut),
        max_new_tokens=max_new_tokens,
        last=done.prompt_ids[-1],
        ends=[*lists(e for e in tokenized.ends if e not in tokenized.stops)],
        whole=whole,
        stops=[*lists(tokenized.stops)],
        reopen=list(tokenized.reopen),
        close=list(tokenized.close),
        lead=list(tokenized.line_break),
        answer_prefix=list(tokenized.answer_prefix),
        waits=[*lists(tokenized.waits)],
        newlines=newlines(),
    )


@functools.cache
def newlines():
    return {i for i in range(len(tokenizer())) if tokenizer().decode([i]).endswith("\n")}


def test_greedy_completions_are_the_oracles(ran):
    runs, model = ran
    runs = [run for run in runs if run[0].sampling.is_greedy]
    assert len(runs) > 300
    modes = collections.Counter()
    for start in range(0, len(runs), 64):
        batch = runs[start : start + 64]
        tokens = np.zeros((64, CONTEXT), np.int32)
        for row, (_, _, done, _) in zip(tokens, batch, strict=False):
            whole = done.prompt_ids + done.tokens
            row[: len(whole)] = whole
        logits = logits_of(model, tokens)
        for logits_TV, (request, tokenized, done, written) in zip(logits, batch, strict=False):
            oracle = Oracle(case_of(request, tokenized, done))
            at = len(done.prompt_ids) - 1
            while not oracle.over:
                if oracle.seen == oracle.tokens:
                    now = logits_TV[at + len(oracle.tokens)].copy()
                else:  # what was thrown away is not among the finished ids
                    now = next_logits(model, done.prompt_ids + oracle.seen)
                now[list(oracle.banned)] = -np.inf
                oracle.choose(int(now.argmax()))
            assert oracle.tokens == done.tokens, (request, tokenized)
            assert oracle.forced == done.forced
            assert oracle.kinds == [KINDS[kind] for kind in written.kinds]
            assert oracle.log == [tuple(entry) for entry in done.interventions]
            assert done.thinking_ended_by == (oracle.ended_by or "open")
            assert done.finish_reason == oracle.finish
            assert done.usage["surplus_tokens"] == len(oracle.surplus)
            modes[request.thinking.mode] += 1
            modes["surplus"] += len(oracle.surplus) > 0
    assert modes.pop("surplus") > 3
    assert min(modes.values()) > 10 and len(modes) == 4, modes


@functools.cache
def forward():
    return jax.jit(lambda model, *batch: model.logits(model(*batch)))


def logits_of(model, tokens):
    """Logits behind every prefix of some rows, of ids that the tokenizer has."""
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    logits = forward()(model, tokens, positions, np.ones_like(tokens))
    return np.array(logits[:, :, : len(tokenizer())])


def next_logits(model, ids):
    tokens = np.zeros((1, CONTEXT), np.int32)
    tokens[0, : len(ids)] = ids
    return logits_of(model, tokens)[0, len(ids) - 1]
