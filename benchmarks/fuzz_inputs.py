"""Inputs of `benchmarks.fuzz`: a sound tiny model and its data, damaged one place at a time.

Each kind is an endless generator of (damage, function that uses the damaged input). The function
raises `UserError` where the input is refused, and `Wrong` where it was accepted but does not work.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from convert.check import jaxs1_logits, transformers_logits
from convert.generation_config import with_stop_tokens
from convert.mapping import pieces, tensors
from convert.weights import open_weights
from jaxs1.config import UserError
from jaxs1.data.chat import encode
from jaxs1.data.config import DataConfig
from jaxs1.data.end_of_turn import end_of_turn
from jaxs1.data.records import load_records
from jaxs1.data.tokenizer import check_vocabulary, load_tokenizer, train_tokenizer
from jaxs1.decoding.params import ThinkingParams
from jaxs1.decoding.prompt import prompt_ids
from jaxs1.decoding.tokenized_thinking import tokenize_thinking
from jaxs1.generate import GenerateConfig, _read_prompts, _request
from jaxs1.model.architecture import Architecture

#: Tolerance of logits relative to the largest one: that of the same comparison in the tests.
TOLERANCE = 2e-5
MISSING = object()
#: What a field may hold instead of its value.
VALUES: tuple[Any, ...] = (
    *(MISSING, None, 0, 1, 2, 3, -1, 0.5, -0.5, 1e-300, 1e300, float("nan"), float("inf"), 2**31),
    *(10**30, True, False, "", "x", "64", "\ud800", "x" * 5000, [], [1], ["x"], {}, {"a": 1}),
    *({"type": "yarn"}, {"rope_type": "dynamic", "factor": 2.0}, [[[]]]),
)
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "dtype": "float32",
    "dual_chunk_attention_config": None,
    "eos_token_id": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 16,
    "is_causal": True,
    "layer_types": None,
    "max_position_embeddings": 128,
    "max_window_layers": 2,
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "partial_rotary_factor": None,
    "quantization_config": None,
    "rms_norm_eps": 1e-6,
    "rope_parameters": None,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "5.0.0",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 320,
}
ROWS: tuple[dict[str, Any], ...] = (
    {"question": "1+1?", "thinking_trajectories": ["one"], "attempt": "2"},
    {"question": "1+1?", "deepseek_thinking_trajectory": "one", "deepseek_attempt": "2"},
    {"question": "1+1?", "answer": "one\n#### 2"},
    {"text": "one"},
    {
        "messages": [
            {"role": "system", "content": "Add."},
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": "2"},
        ]
    },
)
PROMPTS: tuple[dict[str, Any], ...] = (
    {"prompt": "1+1?", "thinking": {"max": 8}, "sampling": {"temperature": 0.5}, "n": 2, "seed": 1},
    {"messages": [{"role": "user", "content": "1+1?"}], "id": 3},
    {"question": "1+1?", "thinking": {"mode": "off", "wait_strings": ["Wait"]}},
)
THINKING = ThinkingParams()


class Wrong(Exception):
    """An input was accepted, but does not work."""


def sound(folder: Path, model_type: str = "qwen2", shards: int = 1) -> Path:
    """A tiny model with its tokenizer."""
    folder.mkdir(parents=True)
    config = CONFIG | {"model_type": model_type}
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in tensors(Architecture.from_hf(config, "config")).items()
    }
    names = list(arrays)
    file_of = {}
    for i in range(shards):
        file = f"model-{i}.safetensors" if shards > 1 else "model.safetensors"
        part = {name: arrays[name] for name in names[i::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        file_of |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": file_of}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    train_tokenizer(["1+1? one 2 Add."], folder, vocabulary=300)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    return folder


def _put(content: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    changed = content | {field: value}
    if value is MISSING:
        del changed[field]
    return changed


def _shown(value: Any) -> str:
    return "missing" if value is MISSING else f"{value!r:.40}"


def config_inputs(rng: random.Random, folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every field of config.json with every value, for Qwen2 and Qwen3."""
    models = {kind: sound(folder / kind, kind) for kind in ("qwen2", "qwen3")}
    cases = list(product(models, CONFIG, VALUES))
    rng.shuffle(cases)
    for kind, field, value in cycle(cases):
        content = _put(CONFIG | {"model_type": kind}, field, value)
        (models[kind] / "config.json").write_text(json.dumps(content))
        yield f"{kind} {field}={_shown(value)}", partial(_run_model, models[kind])


PROMPT = np.arange(5, 12, dtype=np.int32)


@cache
def _our_logits(folder: Path, _: Architecture) -> np.ndarray:
    return jaxs1_logits(open_weights(folder), [PROMPT], "float32")[0]


def _run_model(folder: Path) -> None:
    """The forward pass, compared with transformers' if that accepts the folder too."""
    weights = open_weights(folder)
    with_stop_tokens(weights.config, folder)
    ours = _our_logits(folder, weights.architecture)
    if ours.shape != (len(PROMPT), CONFIG["vocab_size"]) or not np.isfinite(ours).all():
        raise Wrong(f"logits of shape {ours.shape}, or not finite")
    try:
        theirs = transformers_logits(str(folder), [PROMPT], "float32")[0]
    except Exception:  # not installed, or stricter than we are about fields that we do not use
        return
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    if not difference <= TOLERANCE:
        raise Wrong(f"logits differ from transformers' by {difference:.2g}")


def generation_inputs(rng: random.Random, folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """eos_token_id and other fields with every value; files that are no JSON object."""
    model = sound(folder / "model")
    file, sound_file = model / "generation_config.json", {"eos_token_id": 2, "top_p": 0.9}
    damages = [*product(sound_file, VALUES), *(("file", text) for text in BROKEN)]
    rng.shuffle(damages)
    for field, value in cycle(damages):
        content = value if field == "file" else json.dumps(_put(sound_file, field, value)).encode()
        file.write_bytes(content)
        yield f"{field}={_shown(value)}", lambda: _stops(model)


def _stops(model: Path) -> None:
    config, generation = with_stop_tokens(CONFIG, model, 7)
    ids = config["eos_token_id"]
    ids = ids if isinstance(ids, list) else [ids]
    if generation["eos_token_id"] != config["eos_token_id"] or 7 not in ids or 2 not in ids:
        raise Wrong(f"eos_token_id={ids}")


#: Contents that are no JSON object, or hardly one.
BROKEN = (
    *(b"", b" ", b"null", b"[]", b"{}", b'"x"', b"3", b"NaN", b"{", b'{"a":', b"\xff\xfe\x00"),
    *(b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"a": ' * 50_000, b"\x00" * 64, b"%PDF-1.7\n\x80"),
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
)


def tokenizer_inputs(rng: random.Random, folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Tokenizer files that are missing, cut off, broken, or have a value of another type."""
    good = sound(folder / "good")
    template = load_tokenizer(str(good)).chat_template
    (good / "chat_template.jinja").write_text(template)
    model = folder / "model"
    while True:
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(good, model)
        names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
        file = model / rng.choice(names)
        how = rng.choice(("value", "value", "value", "file"))
        if how == "value" and file.suffix == ".json":
            content = json.loads(file.read_text())
            damage = _change(rng, content)
            file.write_text(json.dumps(content))
        else:
            damage = _damage_file(rng, file)
        yield f"{file.name} {damage}", lambda: _use_tokenizer(model)


def _change(rng: random.Random, content: Any) -> str:
    """Replace a random value inside a JSON document."""
    path = []
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = rng.choice(keys)
        path.append(str(key))
        inner = content[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.3:
            break
        content = inner
    value = rng.choice(VALUES)
    if value is MISSING:
        del content[key]
    else:
        content[key] = value
    return f"{'.'.join(path)[:60]}={_shown(value)}"


def _damage_file(rng: random.Random, file: Path) -> str:
    """Remove, cut off, overwrite or corrupt a file."""
    content = bytearray(file.read_bytes())
    match rng.choice(("missing", "cut", "broken", "bytes", "directory")):
        case "missing":
            file.unlink()
            return "missing"
        case "cut":
            end = rng.randrange(len(content))
            file.write_bytes(content[:end])
            return f"cut off at {end}"
        case "broken":
            text = rng.choice(BROKEN)
            file.write_bytes(text)
            return f"is {text!r:.20}"
        case "bytes":
            for _ in range(rng.randint(1, 8)):
                content[rng.randrange(len(content))] = rng.randrange(256)
            file.write_bytes(content)
            return "has other bytes"
        case _:
            file.unlink()
            file.mkdir()
            return "is a directory"


def _use_tokenizer(folder: Path) -> None:
    """All that training and decoding do with a tokenizer."""
    tokenizer = load_tokenizer(str(folder))
    check_vocabulary(tokenizer, str(folder), CONFIG["vocab_size"])
    ids = prompt_ids([{"role": "user", "content": "1+1?"}], THINKING, tokenizer)
    if not ids:
        raise UserError("prompt: is empty")  # as the engine says
    thinking = tokenize_thinking(THINKING, tokenizer)
    end = end_of_turn(tokenizer)
    all_ids = [*ids, *thinking.start, *thinking.close, *([] if end is None else [end])]
    if not all(type(i) is int and 0 <= i < CONFIG["vocab_size"] for i in all_ids):
        raise Wrong(f"ids {all_ids}")
    tokenizer.decode(ids)


def safetensors_inputs(
    rng: random.Random, folder: Path
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Headers and indices that are cut off, corrupted or contradict themselves."""
    goods = [sound(folder / "one"), sound(folder / "two", shards=2)]
    model = folder / "model"
    while True:
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(rng.choice(goods), model)
        indices = list(model.glob("*.index.json"))
        file = rng.choice([*indices, *sorted(model.glob("*.safetensors"))])
        if file in indices:
            index = json.loads(file.read_text())
            damage = _change(rng, index) if rng.random() < 0.7 else _damage_file(rng, file)
            if file.is_file() and "=" in damage:
                file.write_text(json.dumps(index))
        elif rng.random() < 0.8:
            damage = _change_header(rng, file)
        else:
            damage = _damage_file(rng, file)
        yield f"{file.name} {damage}", lambda: _read_all(model)


def _change_header(rng: random.Random, file: Path) -> str:
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    if rng.random() < 0.2:
        length = rng.choice((0, 1, length - 1, length + 1, len(content), 1 << 40, (1 << 64) - 1))
        file.write_bytes(length.to_bytes(8, "little") + content[8:])
        return f"length {length}"
    damage = _change(rng, header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return damage


def _read_all(model: Path) -> None:
    weights = open_weights(model)
    for piece in pieces(weights.architecture):
        if weights.read(piece).shape != piece.shape:
            raise Wrong(f"{piece.name} has shape {weights.read(piece).shape}")


@cache
def _tokenizer(folder: Path) -> Any:
    return load_tokenizer(str(sound(folder)))


def row_inputs(rng: random.Random, folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Rows of training data."""
    tokenizer, file = _tokenizer(folder / "model"), folder / "rows.jsonl"

    def use() -> None:
        _, records = load_records(DataConfig(path=str(file)))
        for example in encode(records, tokenizer):
            if example.tokens.shape != example.is_target.shape or not example.is_target.any():
                raise Wrong(f"no targets in {example.tokens.shape} tokens")

    while True:
        yield _damage_rows(rng, file, ROWS), use


def prompt_inputs(rng: random.Random, folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Lines of a file of prompts."""
    tokenizer, file = _tokenizer(folder / "model"), folder / "prompts.jsonl"

    def use() -> None:
        for prompt in _read_prompts(GenerateConfig(model="m", prompts=str(file))):
            ids = _request(prompt, tokenizer).prompt_ids
            if not all(type(i) is int for i in ids):
                raise Wrong(f"ids {ids}")

    while True:
        yield _damage_rows(rng, file, PROMPTS), use


def _damage_rows(rng: random.Random, file: Path, rows: Sequence[dict[str, Any]]) -> str:
    row = copy.deepcopy(rng.choice(rows))
    shape = next(iter(row))
    if file.is_dir():
        file.rmdir()
    if rng.random() < 0.8:
        damage = _change(rng, row)
        file.write_text(json.dumps(row) + "\n")
    else:
        file.write_text(json.dumps(row) + "\n")
        damage = _damage_file(rng, file)
    return f"{shape}: {damage}"


Inputs = Callable[[random.Random, Path], Iterator[tuple[str, Callable[[], None]]]]
#: Kind -> its inputs, and its share of all.
KINDS: dict[str, tuple[Inputs, int]] = {
    "config": (config_inputs, 8),
    "generation": (generation_inputs, 1),
    "tokenizer": (tokenizer_inputs, 4),
    "safetensors": (safetensors_inputs, 3),
    "rows": (row_inputs, 2),
    "prompts": (prompt_inputs, 2),
}
