"""Small Hugging Face folders of random bits, written by safetensors itself; loading onto meshes."""

import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from convert import mapping
from convert.weights import load_params
from jaxs1.model import transformer
from jaxs1.model.architecture import Architecture
from jaxs1.model.config import MeshConfig
from tests.tiny_models import FLOAT32

CONFIGS = {
    path.stem: {"vocab_size": 61} | json.loads(path.read_text())  # tiny takes its tokenizer's
    for path in sorted((Path(__file__).parents[2] / "configs/models").glob("*.json"))
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


MESHES = [
    MeshConfig(fsdp=4, tensor=2),
    MeshConfig(data=2, fsdp=2, context=2),
    MeshConfig(fsdp=1, data=8),
]


def load(weights, rules, dtype):
    """Parameters on a mesh."""
    return load_params(weights, transformer.abstract(weights.architecture, FLOAT32, rules), dtype)


def reduced(name, *, tied=None, layers=2):
    """A config of configs/models with its head counts, but small widths."""
    config = dict(CONFIGS[name])
    heads, head_dim = config["num_attention_heads"], 2
    config |= {"num_hidden_layers": layers, "vocab_size": 61, "intermediate_size": 24}
    config["hidden_size"] = heads * head_dim
    if config["model_type"] == "qwen3_moe":
        config |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 6}
    if config["model_type"] in (
        "qwen3",
        "qwen3_moe",
    ):  # its heads need not add up to the model's width
        config |= {"head_dim": 4, "hidden_size": 20}
    if tied is not None:
        config["tie_word_embeddings"] = tied
    return config


def random_tensors(config, dtype, seed=0):
    """Random bits under every name, infinities and NaNs among them.

    NaNs have payloads, which XLA keeps as it compiles for users, but not as for quick tests.
    """
    random = np.random.default_rng(seed)
    shapes = mapping.tensors(Architecture.from_hf(config, "test"))
    width = DTYPES[dtype].itemsize
    bits = {name: random.bytes(width * int(np.prod(shape))) for name, shape in shapes.items()}
    found = {
        name: torch.frombuffer(bytearray(raw), dtype=DTYPES[dtype]).reshape(shapes[name])
        for name, raw in bits.items()
    }
    if os.environ["JAXS1_TEST_XLA_FLAGS"]:
        for tensor in found.values():
            tensor[tensor.isnan()] = torch.nan
    return found


def write_hf(folder, config, tensors, num_shards=1):
    """A Hugging Face folder with auxiliary files; returns it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        (folder / name).write_text(f"content of {name}")
    names = sorted(tensors)
    places = {}
    for i in range(num_shards):
        file = f"model-{i + 1:05}-of-{num_shards:05}.safetensors"
        file = file if num_shards > 1 else "model.safetensors"
        group = {name: tensors[name] for name in names[i::num_shards]}
        save_file(group, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(group, file)
    if num_shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def make_hf(folder, name="qwen2.5-0.5b", *, dtype="bfloat16", num_shards=1, seed=0, **options):
    """A Hugging Face folder of random bits; returns it."""
    config = reduced(name, **options) | {"torch_dtype": dtype}
    return write_hf(folder, config, random_tensors(config, dtype, seed), num_shards)


def read_bits(folder):
    """Every tensor of a Hugging Face folder as (dtype, shape, bytes), read by safetensors."""
    content = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as f:
            for name in f.keys():  # noqa: SIM118  (not a dictionary)
                tensor = f.get_tensor(name)
                raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
                content[name] = (tensor.dtype, tuple(tensor.shape), raw)
    return content
