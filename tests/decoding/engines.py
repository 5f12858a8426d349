"""Tiny model folders with a real tokenizer, and engines on them."""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path

import torch

from jaxs1.data.model_settings import with_preset
from jaxs1.data.tokenizer import load_tokenizer, train_tokenizer
from jaxs1.decoding.loading import EngineConfig, ParallelConfig, load_engine
from jaxs1.decoding.params import SamplingParams
from jaxs1.decoding.scheduler import Limits
from tests.tiny_models import hf_model

TEXTS = [
    "Wait, the answer is in the question. Hmm, think again!\nFinal Answer: 42\n\n",
    "Alternatively, let us add 12 and 30.\nWait, that is the same. So the answer is 42.\n",
]
torch.set_num_threads(1)  # threads cost more than they give to so small a model
#: Ids of the model; the tokenizer has fewer.
VOCAB = 336
LIMITS = Limits(
    max_num_seqs=16, kv_cache_tokens=2048, max_seq_len=64, decode_steps=8, prefill_chunk_tokens=32
)

#: All that a draw can ask for; with greedy ones these are the only two kinds that are compiled.
HOT = SamplingParams(temperature=1.2, answer_temperature=1, top_k=200, top_p=0.98, min_p=0.01,
               repetition_penalty=1.1)  # fmt: skip


@functools.cache
def tokenizer_folder():
    """A byte-level BPE with s1's special tokens, and <think>, </think> of one token each."""
    folder = tempfile.mkdtemp(prefix="jaxs1-tokenizer-")
    train_tokenizer(TEXTS, folder, vocabulary=320, words=("<think>", "</think>"))
    declare_s1(folder)
    return folder


def declare_s1(folder):
    """Say that the model was trained with s1's delimiters, as training does at export."""
    path = Path(folder) / "generation_config.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(with_preset(content, "s1")))


@functools.cache
def tokenizer():
    return load_tokenizer(tokenizer_folder())


def encode(text):
    return tokenizer()(text, add_special_tokens=False)["input_ids"]


def lean(model, likes):
    """Add to the logits of some ids about what `likes` says, in every context.

    One dimension carries a constant from the embedding to the head: no layer writes to it.
    """
    with torch.no_grad():
        inner = model.model
        inner.embed_tokens.weight.normal_()  # large, or all tokens of a context look alike
        inner.embed_tokens.weight[:, 0] = 1
        for layer in inner.layers:
            layer.self_attn.o_proj.weight[0] = 0
            experts = getattr(layer.mlp, "experts", None)
            if experts is None:
                layer.mlp.down_proj.weight[0] = 0
            else:
                experts.down_proj[:, 0] = 0
        inner.norm.weight[0] = 1
        model.lm_head.weight[:, 0] = 0
        for token, amount in likes.items():
            model.lm_head.weight[token, 0] = amount


def write_model(folder, likes=None, *, kind="qwen2-untied-4-4", seed=0, context=None, **more):
    """A folder as users have them; returns the transformers model in it, as the oracle."""
    model = hf_model(kind, vocab=VOCAB, layers=2, seed=seed, **more)
    model.config.max_position_embeddings = context or model.config.max_position_embeddings
    lean(model, likes or {})
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    declare_s1(folder)
    return model


def open_tiny(folder, *, tensor=1, replicas=1, **limits):
    """An engine on a folder."""
    return load_engine(
        EngineConfig(
            model=str(folder),
            dtype="float32",
            limits=dataclasses.replace(LIMITS, **limits),
            parallel=ParallelConfig(tensor, replicas),
        )
    ).engine


def complete_all(engine, requests):
    """For every request its completions, in order."""
    done = dict(engine.run(requests))
    assert sorted(done) == list(range(len(requests)))
    return [done[i] for i in range(len(requests))]


def new_tokens(model, prompt, *, ends, max_tokens, min_tokens=0, penalty=1.0):
    """Greedy ids behind a prompt from transformers' generate, none beyond the tokenizer."""
    with torch.no_grad():
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
            do_sample=False,
            max_new_tokens=max_tokens,
            min_new_tokens=min_tokens,
            repetition_penalty=penalty,
            eos_token_id=sorted(ends),
            pad_token_id=0,
            suppress_tokens=list(range(len(tokenizer()), VOCAB)),
        )
    return out[0, len(prompt) :].tolist()
