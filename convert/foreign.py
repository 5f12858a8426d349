"""Weights that cannot be read: what a folder contains instead, and what to do.

Formats of other programs, quantized weights, adapters, tensors under other names. Each function
returns the end of an error message, or None if it recognizes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from convert import safetensors_io
from jaxs1.config import listed

ADAPTER = "adapter_config.json"
_PICKLE = "in transformers, from_pretrained(DIR) and save_pretrained(NEW) write safetensors"
_SAVE = "load it where it was written, and save it as safetensors"
_ORIGINAL = "quantized models are not supported; give the original one"


class _Format(NamedTuple):
    pattern: str
    what: str
    remedy: str = _SAVE


#: Recognized by the names of files; the first one that matches is reported.
_FORMATS = (
    _Format(
        "*.gguf",
        "GGUF of llama.cpp",
        "make a Hugging Face folder of it: jaxs1 convert from_gguf FILE OUT",
    ),
    _Format("*.ggml", "GGML of llama.cpp", "give the Hugging Face folder that it was made from"),
    _Format("pytorch_model*.bin*", "pickled PyTorch weights", _PICKLE),
    _Format(
        "global_step*", "a DeepSpeed checkpoint", "run its zero_to_fp32.py, then save it again"
    ),
    _Format("*.distcp", "a distributed checkpoint of PyTorch"),
    _Format("consolidated*", "weights in their authors' own format"),
    _Format("*.bin", "pickled PyTorch weights", _PICKLE),
    _Format("*.pt", "pickled PyTorch weights", _PICKLE),
    _Format("*.pth", "pickled PyTorch weights", _PICKLE),
    _Format("*.ckpt", "a checkpoint of TensorFlow or Lightning"),
    _Format("tf_model*.h5", "TensorFlow weights"),
    _Format("*.msgpack", "Flax weights"),
    _Format("*.npz", "NumPy or MLX arrays"),
    _Format("*.onnx", "an ONNX graph"),
)

#: Files next to quantized weights whose config.json does not mention it.
_QUANTIZED_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")

#: Names that only quantized weights have.
_QUANTIZED = re.compile(
    r"\.(qweight|qzeros|g_idx|scales|biases|weight_scale(_inv|_2)?|weight_packed|input_scale|"
    r"absmax|quant_map|quant_state\S*|SCB)$"
)

#: Part of a prefix -> what writes it.
_PREFIXES = {
    "_orig_mod.": "torch.compile: save model._orig_mod",
    "base_model.": "PEFT: save model.merge_and_unload()",
    "module.": "DataParallel or DeepSpeed: save model.module",
    "language_model.": "a multimodal model: save its language model alone",
    "thinker.": "a multimodal model: save its language model alone",
}

#: The part of a name that does not depend on how the model was wrapped.
_CORE = re.compile(r"(layers\.\d+\.|embed_tokens\.|norm\.weight$|lm_head\.)")


def foreign_files(path: Path) -> str | None:
    """What a folder without safetensors, or a file, is instead."""
    if path.is_file():
        known = _format([path.name])
        return f"is a file, {known}" if known else "is a file; give the folder that contains it"
    names = sorted(file.name for file in path.iterdir())
    if ADAPTER in names or "adapter_model.safetensors" in names:
        return f"contains a PEFT adapter; {_adapter_remedy(path)}"
    if known := _format(names):
        return f"contains {known}"
    if parts := [name for name in names if name.endswith(".safetensors")]:
        return (
            f"contains {listed(parts, 60)}, but neither {safetensors_io.SINGLE} nor "
            f"{safetensors_io.INDEX}; download it again, or rename a single file"
        )
    nested = [name for name in names if safetensors_io.has_weights(path / name)]
    return f"contains weights in {listed(nested, 60)}; give that folder" if nested else None


def foreign_companions(folder: Path) -> str | None:
    """A file next to the weights that says that they alone are not the model."""
    if (folder / ADAPTER).exists():
        return (
            f"contains both weights and a PEFT adapter ({ADAPTER}); move the adapter away if the "
            "weights include it, or merge it with PEFT's merge_and_unload()"
        )
    found = [name for name in _QUANTIZED_FILES if (folder / name).exists()]
    return f"contains {found[0]}; {_ORIGINAL}" if found else None


def foreign_names(expected: Iterable[str], found: Iterable[str]) -> str | None:
    """Why the tensors of a model have other names than expected."""
    wanted, present = set(expected), set(found)
    extra = sorted(present - wanted)
    if quantized := list(filter(_QUANTIZED.search, extra)):
        return f"contains {listed(quantized, 60)}; {_ORIGINAL}"
    if lora := [name for name in extra if ".lora_" in name or ".base_layer." in name]:
        return (
            f"contains {listed(lora, 80)}, an adapter that is not merged; save PEFT's "
            "model.merge_and_unload()"
        )
    for name in extra:
        if (core := _CORE.search(name)) is None:
            continue
        prefix, rest = name[: core.start()], name[core.start() :]
        usual = "" if rest.startswith("lm_head.") else "model."
        if prefix != usual and usual + rest in wanted - present:
            origin = next((text for part, text in _PREFIXES.items() if part in prefix), None)
            remedy = f" ({origin})" if origin else "; rename them, or save AutoModelForCausalLM"
            return f"names a tensor {name:.80}, must be {usual + rest:.60}{remedy}"
    return None


def _format(names: list[str]) -> str | None:
    for pattern, what, remedy in _FORMATS:
        if matching := [name for name in names if fnmatch(name, pattern)]:
            return f"{listed(matching, 60)}: {what}, which cannot be read; {remedy}"
    return None


def _adapter_remedy(folder: Path) -> str:
    """What to do with an adapter; a run of our own exports it merged as well."""
    merged = folder.parent / "hf"
    if safetensors_io.has_weights(merged):
        return f"give {merged}, where it is merged into its base weights"
    try:
        base = json.loads((folder / ADAPTER).read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    name = f" ({base:.60})" if isinstance(base, str) else ""
    return f"merge it into its base weights{name} with PEFT's merge_and_unload(), and save that"
