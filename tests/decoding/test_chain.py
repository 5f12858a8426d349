"""What is trained is what decoding writes, token by token, on models whose text is fixed.

A model says a chain of tokens: its layers add nothing, so the newest token decides the next one.
The chain is an example as training encodes it; decoding must write that example again.
"""

import itertools
import json

import pytest
import torch

from jaxs1 import LLM, Limits, ThinkingParams, UserError
from jaxs1.data.chat import Record, encode
from jaxs1.data.messages import clean_messages
from jaxs1.data.tokenizer import load_tokenizer
from jaxs1.decoding.prompt import prompt_ids
from jaxs1.decoding.tokenized_thinking import tokenize_thinking
from tests.data.templates import assistant, folder_with, user
from tests.decoding.engines import VOCAB
from tests.tiny_models import hf_model

LIMITS = Limits(max_num_seqs=1, kv_cache_tokens=512, max_seq_len=256, decode_steps=8)
#: Tokens of the answers, so that none occurs twice in one of them.
PIECES = ("\nFirst", "First", "one\n", "\nAnswer: 2", "\n\nAnswer: 2", "Answer: 2", "(call)")
TRACE = ("First one", "Answer: 2")


def write_chain(folder, name, tokens, *, eos, kind="qwen2-untied-4-4", pieces=PIECES):
    """A folder with a model that says `tokens[1:]` behind `tokens[0]`, then `eos` for ever."""
    tokenizer = load_tokenizer(folder_with(name, *pieces))
    assert len(set(tokens)) == len(tokens), "a token occurs twice"
    model = hf_model(kind, vocab=VOCAB)
    head, embedding = model.lm_head.weight, model.model.embed_tokens.weight
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1)
        head.zero_(), embedding.zero_()
        embedding[:, -1], head[tokens[-1], -1] = 1, 5
        for place, (token, following) in enumerate(itertools.pairwise(tokens)):
            embedding[token] = torch.eye(embedding.shape[1])[place]
            head[following, place] = 5
    model.config.eos_token_id = eos[0]
    model.generation_config.eos_token_id = eos
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def train_and_decode(name, record, thinking, tmp_path, **more):
    """The training example, and what a model that has learnt it by heart says to its question."""
    tokenizer = load_tokenizer(folder_with(name, *PIECES))
    (example,) = encode([record], tokenizer)
    tokens = example.tokens.tolist()
    end = tokenizer.eos_token_id
    tokens = tokens[: len(tokens) - tokens[::-1].index(end)]  # without a line break behind it
    prompt = [
        *prompt_ids(record.messages[:1], thinking, tokenizer),
        *tokenize_thinking(thinking, tokenizer).start,
    ]
    model = write_chain(tmp_path, name, tokens[len(prompt) - 1 :], eos=[end], **more)
    llm = LLM(tmp_path, dtype="float32", limits=LIMITS)
    return tokens, llm.chat([record.messages[0]], thinking=thinking), model


@pytest.mark.parametrize(
    ("name", "kind"),
    [("qwen2.5", "qwen2-untied-4-4"), ("qwen3", "qwen3-untied-6-3"), ("r1", "qwen2-untied-4-4"),
     ("r1", "mistral-untied-8-2"), ("qwq", "qwen2-untied-4-4")],
)  # fmt: skip
def test_a_trace_is_written_again(name, kind, tmp_path):
    """s1K's row: thinking, its end and the answer; transformers continues the prompt alike."""
    messages = clean_messages([user("1+1?"), assistant("as s1")])
    record = Record("here", messages, trace=TRACE)
    tokens, done, model = train_and_decode(name, record, ThinkingParams(), tmp_path, kind=kind)
    assert [*done.prompt_ids, *done.tokens] == tokens
    assert (done.thinking, done.answer) == ("First one", "Answer: 2")
    assert (done.thinking_ended_by, done.finish_reason) == ("model", "stop")
    assert done.settings["thinking"]["preset"] == ("s1" if name == "qwen2.5" else "think_tags")
    prompt = torch.tensor([done.prompt_ids])
    if name != "qwen2.5":  # s1's "answer" is what the model itself was taught to write
        assert not any(done.forced)
    generated = model.generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=0)
    assert generated[0].tolist() == tokens


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
def test_an_answer_without_thinking_is_written_again(name, tmp_path):
    record = Record("here", clean_messages([user("1+1?"), assistant("First one\nAnswer: 2")]))
    tokens, done, _ = train_and_decode(name, record, ThinkingParams(mode="off"), tmp_path)
    assert [*done.prompt_ids, *done.tokens] == tokens
    assert (done.thinking, done.answer) == ("", "First one\nAnswer: 2")


@pytest.mark.parametrize("name", ["r1", "qwq"])
def test_off_closes_what_the_prompt_opens(name, tmp_path):
    """Behind the close, a model that never learnt it answers; before, it would have thought."""
    tokenizer = load_tokenizer(folder_with(name, *PIECES))
    ids = [tokenizer(t, add_special_tokens=False)["input_ids"][-1] for t in ("\n\n", "First")]
    write_chain(tmp_path, name, [*ids, tokenizer.eos_token_id], eos=[tokenizer.eos_token_id])
    llm = LLM(tmp_path, dtype="float32", limits=LIMITS)
    done = llm.chat("1+1?", thinking=ThinkingParams(mode="off"))
    assert (done.thinking, done.answer, done.finish_reason) == ("", "First", "stop")
    assert tokenizer.decode(done.prompt_ids).endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_every_declared_end_stops(file, tmp_path):
    """A second end, in either file, ends the answer; without it the chain continues."""
    tokenizer = load_tokenizer(folder_with("qwen2.5", *PIECES))
    first, call, rest = (tokenizer.convert_tokens_to_ids(t) for t in ("First", "(call)", "one\n"))
    before = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    chain = [before, first, call, rest, tokenizer.eos_token_id]
    write_chain(tmp_path, "qwen2.5", chain, eos=[tokenizer.eos_token_id])
    off = ThinkingParams(mode="off")
    done = LLM(tmp_path, dtype="float32", limits=LIMITS).chat("1+1?", thinking=off)
    assert done.answer_ids == [first, call, rest]
    path = tmp_path / file
    content = json.loads(path.read_text()) | {"eos_token_id": [tokenizer.eos_token_id, call, 10**9]}
    path.write_text(json.dumps(content))
    done = LLM(tmp_path, dtype="float32", limits=LIMITS).chat("1+1?", thinking=off)
    assert (done.answer_ids, done.finish_reason) == ([first], "stop")


def test_what_the_python_interface_refuses(tmp_path):
    write_chain(tmp_path, "qwen3", [0, 1, 2], eos=[2])
    llm = LLM(tmp_path, dtype="float32", limits=LIMITS)
    with pytest.raises(UserError, match=r"preset=s1: contradicts .*set thinking.preset=think_tags"):
        llm.chat("1+1?", thinking=ThinkingParams(preset="s1"))
    with pytest.raises(UserError, match=r"messages\[0\].content: contains .ud83d, half of a surr"):
        llm.chat("half \ud83d")
    with pytest.raises(UserError, match=r"prompt: contains .ud83d, half of a surr"):
        llm.generate("half \ud83d")
    with pytest.raises(UserError, match=r"wait_strings: contains .ud83d, half of a surr"):
        llm.chat("hi", thinking=ThinkingParams(num_waits=1, wait_strings=("\ud83d",)))
