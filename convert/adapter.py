"""Low-rank adapters: in PEFT's format, in host memory, and merged into their base weights.

    ADAPTER/adapter_config.json         rank, alpha, target modules, location of the base weights
    ADAPTER/adapter_model.safetensors   lora_A [rank, in] and lora_B [out, rank] of each module

A step of a training run stores them with Orbax as `adapter/<path>.adapter.a` [L, in..., rank] and
`.b` [L, rank, out...]; PEFT's adapter_config.json is in the run's model/ folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from convert import orbax_io
from convert.interface import Weights
from convert.mapping import TABLE, Piece
from jaxs1.model.architecture import Architecture, read_config
from jaxs1.model.config import LoraConfig
from jaxs1.model.hf_config import Fields
from jaxs1.storage import atomic_folder

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

#: Path of each linear layer that can have an adapter -> name of its Hugging Face tensor.
LINEAR_LAYERS = {
    spec.param.removesuffix(".kernel"): spec.hf
    for spec in TABLE
    if spec.param.startswith("layers.") and spec.param.endswith(".kernel")
}


def peft_config(lora: LoraConfig, base: str) -> dict[str, Any]:
    """PEFT's adapter_config.json.

    Args:
        lora: rank, alpha, target modules
        base: folder or hub id of the base weights; a folder is written as an absolute path
    """
    is_integer = int(lora.alpha) == lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(Path(base).resolve()) if Path(base).exists() else base,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if is_integer else lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(lora.target_modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


@dataclass(frozen=True)
class Adapter:
    """An adapter in host memory.

    Args:
        config: content of PEFT's adapter_config.json
        pairs: A [L, in, rank] and B [L, rank, out] of each adapted linear layer, by its path
    """

    config: dict[str, Any]
    pairs: dict[str, tuple[np.ndarray, np.ndarray]]

    @classmethod
    def from_arrays(cls, config: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Adapter:
        """From parameters by dotted path; input axes are flattened to one, and so are outputs."""
        rank = config["r"]
        pairs = {}
        for path in LINEAR_LAYERS:
            if f"{path}.adapter.a" in arrays:
                a, b = (arrays[f"{path}.adapter.{end}"] for end in "ab")
                layers = a.shape[0]
                pairs[path] = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
        return cls(config, pairs)

    @classmethod
    def from_step(cls, step: Path, model: Path) -> Adapter:
        """Read a step of a training run, whose model/ folder is `model`; raises `UserError`."""
        stored = orbax_io.read_arrays(step / "adapter")
        arrays = {
            path: array.read(tuple(slice(0, n) for n in array.shape))
            for path, array in stored.items()
        }
        return cls.from_arrays(_read_adapter_config(model / CONFIG), arrays)

    def product(self, path: str, layer: int) -> np.ndarray:
        """A B alpha / rank of one layer, float32 [in, out]."""
        a, b = (x[layer].astype(np.float32) for x in self.pairs[path])
        return (a * np.float32(self.config["lora_alpha"] / self.config["r"])) @ b

    def write(self, dst: Path) -> None:
        """Write a folder that PEFT's `PeftModel.from_pretrained` loads; it appears complete.

        Raises:
            UserError: the folder exists; any `OSError`.
        """
        tensors = {}
        for path, pair in self.pairs.items():
            for name, stacked in zip("AB", pair, strict=True):
                for layer, matrix in enumerate(stacked):
                    module = LINEAR_LAYERS[path].format(i=layer).removesuffix(".weight")
                    key = f"base_model.model.{module}.lora_{name}.weight"
                    tensors[key] = np.ascontiguousarray(matrix.T)
        with atomic_folder(dst) as partial:
            (partial / CONFIG).write_text(json.dumps(self.config, indent=2) + "\n")
            (partial / TENSORS).write_bytes(save(tensors, metadata={"format": "pt"}))

    def fingerprint(self) -> str:
        """Hash of the content."""
        digest = hashlib.sha256(json.dumps(self.config).encode())
        for pair in self.pairs.values():
            for array in pair:
                digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        return digest.hexdigest()


class MergedWeights:
    """`Weights` plus an adapter, added piece by piece in float32.

    Args:
        base: weights that the adapter was trained on
        adapter: adapter to merge
        aux_files: folder of the tokenizer files; None takes those of `base`
        config: content of config.json; None takes that of `base`
    """

    def __init__(
        self,
        base: Weights,
        adapter: Adapter,
        aux_files: Path | None = None,
        config: dict[str, Any] | None = None,
    ):
        self.name = f"{base.name} with an adapter"
        self.config: dict[str, Any] = config or base.config
        self.architecture: Architecture = base.architecture
        self.aux_files: Path | None = aux_files or base.aux_files
        self._base, self._adapter = base, adapter

    def dtype(self, path: str) -> np.dtype:
        """See `Weights`; float32, because the sum is not rounded to the dtype of the base."""
        return np.dtype(np.float32)

    def read(self, piece: Piece) -> np.ndarray:
        """See `Weights`."""
        block = self._base.read(piece)
        path = piece.param.removesuffix(".kernel")
        if path not in self._adapter.pairs:
            return block.astype(np.float32)
        total = self._adapter.product(path, piece.index[0].start).reshape(piece.shape)
        total += block
        return total

    def fingerprint(self) -> str | None:
        """See `Weights`."""
        base = self._base.fingerprint()
        return base and base + self._adapter.fingerprint()


def _read_adapter_config(path: Path) -> dict[str, Any]:
    """PEFT's adapter_config.json; raises `UserError` if what an adapter needs is wrong."""
    config = read_config(path)
    fields = Fields(config, str(path))
    fields.count("r")
    fields.number("lora_alpha")
    if not isinstance(config.get("base_model_name_or_path"), str):
        fields.refuse("base_model_name_or_path", "must name the base weights")
    return config
