"""The Python interface: what `from jaxs1 import ...` gives, against the engine it is made of."""

import subprocess
import sys
from importlib import import_module

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxs1
from jaxs1 import LLM, Limits, SamplingParams, ThinkingParams, UserError, load_model
from jaxs1.decoding.outputs import Request
from jaxs1.decoding.prompt import prompt_ids
from tests.decoding.engines import complete_all, encode, open_tiny, write_model
from tests.numerics import relative_error

pytestmark = pytest.mark.slow

PROMPTS = ["How many primes are below 100?", "Add 12 and 30.", "Is 91 prime?"]

THINKING = ThinkingParams(max=12, num_waits=2, max_answer_tokens=8, min_answer_tokens=4)
SAMPLED = SamplingParams(temperature=1.0)
LIMITS = Limits(max_num_seqs=8, kv_cache_tokens=2048, max_seq_len=128, decode_steps=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    ends = encode("<|im_start|>answer") + encode("<|im_end|>")
    write_model(folder, {ends[0]: 3.0, ends[-1]: 2.0})
    return folder


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(folder, dtype="float32", limits=LIMITS)


def from_engine(folder, requests):
    """The same from a fresh engine, without `LLM`."""
    engine = open_tiny(folder, max_num_seqs=8, max_seq_len=128)
    return complete_all(engine, requests(engine.tokenizer))


def chat_ids(text, tokenizer, thinking=THINKING):
    return prompt_ids([{"role": "user", "content": text}], thinking, tokenizer)


def test_chat_equals_the_engine_and_has_the_shape_of_its_arguments(folder, llm):
    def requests(tokenizer):
        return [Request(chat_ids(p, tokenizer), THINKING, SAMPLED, 3, seed=5) for p in PROMPTS]

    expected = from_engine(folder, requests)
    settings = {"thinking": THINKING, "sampling": SAMPLED, "seed": 5}
    assert llm.chat(PROMPTS, n=3, **settings) == expected
    assert llm.chat(PROMPTS[0], n=3, **settings) == expected[0]
    assert llm.chat(PROMPTS, **settings) == [first for first, *_ in expected]
    assert llm.chat(PROMPTS[0], **settings) == expected[0][0]
    conversation = [{"role": "user", "content": PROMPTS[1]}]
    assert llm.chat(conversation, **settings) == expected[1][0]
    assert llm.chat([conversation], **settings) == [expected[1][0]]
    assert llm.chat([], **settings) == []
    done = expected[0][0]
    assert done.usage["thinking_tokens"] == len(done.thinking_ids) <= THINKING.max
    assert any(
        entry.kind == "wait" for batch in expected for c in batch for entry in c.interventions
    )


def test_generate_takes_raw_texts_and_ids(folder, llm):
    texts = ["The answer is", "Wait, "]
    expected = from_engine(folder, lambda _: [Request(encode(t), THINKING, n=2) for t in texts])
    assert llm.generate(texts, thinking=THINKING, n=2) == expected
    assert llm.generate([encode(t) for t in texts], thinking=THINKING, n=2) == expected
    assert llm.generate(texts[1], thinking=THINKING) == expected[1][0]
    assert llm.generate(encode(texts[1]), thinking=THINKING) == expected[1][0]


@pytest.mark.parametrize("seed", range(4))
def test_stream_is_the_completion_in_pieces(llm, seed):
    settings = {"thinking": THINKING, "sampling": SAMPLED, "seed": seed}
    pieces = list(llm.stream(PROMPTS[0], **settings))
    *body, end = pieces
    assert end == ("", "end", False, llm.chat(PROMPTS[0], **settings))
    assert all(piece.completion is None and piece.text for piece in body)
    texts = {
        kinds: "".join(piece.text for piece in body if piece.kind in kinds)
        for kinds in (("thinking", "wait"), ("answer",))
    }
    assert texts["thinking", "wait"].strip() == end.completion.thinking
    assert texts["answer",].strip() == end.completion.answer
    assert all(piece.forced for piece in body if piece.kind == "wait")
    waits = sum(entry.kind == "wait" for entry in end.completion.interventions)
    assert sum(piece.kind == "wait" for piece in body) >= bool(waits)


def test_stream_waits_for_the_rest_of_a_character(llm):
    """Thinking whose tokens are single bytes of one character."""
    euro = encode("\u20ac")
    assert len(euro) > 1
    thinking = ThinkingParams(
        max=20, num_waits=1, wait_strings=("\u20ac\u20ac",), max_answer_tokens=2
    )
    for seed in range(8):
        pieces = list(llm.stream(PROMPTS[0], thinking=thinking, sampling=SAMPLED, seed=seed))
        waits = "".join(piece.text for piece in pieces if piece.kind == "wait")
        if waits:
            assert waits == "\u20ac\u20ac"
            return
    pytest.fail("no sample ended its thinking, so nothing was tested")


def test_streams_may_be_left_early_and_read_in_turn(llm):
    settings = {"thinking": THINKING, "sampling": SAMPLED}
    alone = [llm.chat(prompt, **settings) for prompt in PROMPTS[:2]]
    left = llm.stream(PROMPTS[2], **settings)
    next(left)
    left.close()
    streams = [llm.stream(prompt, **settings) for prompt in PROMPTS[:2]]
    ends = [None, None]
    while not all(ends):
        for i, stream in enumerate(streams):
            piece = next(stream, None)
            if piece is not None and piece.completion:
                ends[i] = piece.completion
    assert ends == alone
    assert llm.chat(PROMPTS[:2], **settings) == alone


def test_a_prompt_that_cannot_run_raises_alone_and_is_reported_in_a_batch(llm):
    too_long = "prime " * 200
    with pytest.raises(UserError, match=r"context|long|fit"):
        llm.chat(too_long, thinking=THINKING)
    with pytest.raises(UserError, match=r"context|long|fit"):
        list(llm.stream(too_long, thinking=THINKING))
    with pytest.raises(UserError, match="is empty"):
        llm.chat(" ")
    good, bad = llm.chat([PROMPTS[0], too_long], thinking=THINKING)
    assert good == llm.chat(PROMPTS[0], thinking=THINKING)
    assert bad.finish_reason == "error" and bad.error and not bad.answer


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda llm: llm.chat(3), "messages=3: must be a text"),
        (lambda llm: llm.chat([3]), "messages=3: must be a text"),
        (lambda llm: llm.chat([{"role": "user"}]), "messages="),
        (lambda llm: llm.generate([[{"role": "user", "content": "a"}]]), "prompts=.*chat()"),
        (lambda llm: llm.chat("a", n=0), "n=0"),
        (lambda _: LLM("no/such/folder"), "no such folder"),
    ],
)
def test_wrong_use_is_one_line(llm, call, words):
    with pytest.raises(UserError, match=words) as error:
        call(llm)
    assert "\n" not in str(error.value)


def test_load_model_is_the_network(folder, tmp_path):
    oracle = write_model(tmp_path)
    network = load_model(tmp_path)
    ids = np.array([encode(PROMPTS[0])], np.int32)
    positions = np.arange(ids.shape[1], dtype=np.int32)[None]
    logits = network.logits(network(ids, positions, np.ones_like(ids)))
    with torch.no_grad():
        expected = oracle(torch.tensor(ids.astype(np.int64))).logits
    assert relative_error(logits, expected) < 2e-5
    assert load_model(folder, dtype="bfloat16").embedding[...].dtype == jnp.bfloat16


def test_every_public_name_is_there_and_is_listed():
    for name in jaxs1.__all__:
        assert getattr(jaxs1, name) is not None
    assert set(jaxs1.__all__) <= set(dir(jaxs1))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jaxs1.nothing  # noqa: B018


@pytest.mark.parametrize("name", ["train", "evaluate", "curate"])
def test_a_function_is_not_replaced_by_the_module_of_its_name(name):
    module = import_module(f"jaxs1.{name}")
    assert getattr(jaxs1, name) is getattr(module, name)


def test_import_loads_nothing_heavy():
    program = (
        "import jaxs1, sys; print({'jax', 'numpy', 'jsonargparse', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
