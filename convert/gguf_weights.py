"""A GGUF file of llama.cpp as `Weights`, dequantised piece by piece to float32.

Names, block formats and their dequantisation are those of the package `gguf`; this module knows
which fields of the file are which fields of a `config.json`. Rotary embeddings differ: llama.cpp
rotates neighbouring elements of each head of llama's q and k, transformers its two halves, so
the rows of these two tensors come back in transformers' order.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np

from convert.mapping import Piece, tensors
from convert.safetensors_io import REMEDY
from convert.weights import compare
from jaxs1.config import UserError, one_line
from jaxs1.model.architecture import Architecture
from jaxs1.model.rope import Llama3

#: `general.architecture` -> `model_type` of config.json. Mistral's models are llama in GGUF.
MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}

#: Fields of config.json -> fields of the architecture, and whether a file must have them.
_FIELDS = {
    "hidden_size": ("embedding_length", True),
    "intermediate_size": ("feed_forward_length", True),
    "num_hidden_layers": ("block_count", True),
    "num_attention_heads": ("attention.head_count", True),
    "num_key_value_heads": ("attention.head_count_kv", False),
    "head_dim": ("attention.key_length", False),
    "max_position_embeddings": ("context_length", True),
    "rms_norm_eps": ("attention.layer_norm_rms_epsilon", True),
    "rope_theta": ("rope.freq_base", False),
}

#: Context of Llama 3's pretraining [tokens]; with 1 and 4, the factors of low and high frequencies,
#: what llama.cpp's converter computes `_ROPE_FACTORS` from.
_LLAMA3_CONTEXT = 8192
_ROPE_FACTORS = "rope_freqs.weight"


def import_gguf() -> ModuleType:
    """The package `gguf`; raises `UserError` if it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise UserError(f"gguf: {error.name} is not installed; pip install 'jaxs1[gguf]'") from None
    return gguf


class GgufWeights:
    """A GGUF file.

    Args:
        file: one file with all tensors
        aux_files: folder with the tokenizer files, if any

    Raises:
        UserError: the file is truncated, no GGUF, one of several parts, or of an architecture
            that is not supported; the package `gguf` is not installed.
    """

    def __init__(self, file: Path, aux_files: Path | None = None):
        self.name, self.aux_files = str(file), aux_files
        self._file, self._gguf = file, import_gguf()
        reader = self._open()
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._fields = self._read_fields(reader)
        if self._fields.get("split.count", 1) > 1:
            self._refuse("is one of several parts; merge them with llama-gguf-split --merge")
        self._kind = str(self._fields.get("general.architecture"))
        if self._kind not in MODEL_TYPES:
            known = ", ".join(MODEL_TYPES)
            self._refuse(
                f"general.architecture={self._kind:.40}: must be one of {known}; others are not "
                "supported"
            )
        self.config = self._config()
        self.architecture = Architecture.from_hf(self.config, self.name)
        self._check_tensors()

    @property
    def has_tokenizer(self) -> bool:
        """Whether the file has a vocabulary."""
        return "tokenizer.ggml.tokens" in self._fields

    def dtype(self, path: str) -> np.dtype:
        """See `Weights`: float32 holds the values of all block formats exactly."""
        return np.dtype(np.float32)

    def read(self, piece: Piece) -> np.ndarray:
        """See `Weights`."""
        tensor = self._tensors[self._names[piece.hf]]
        block = self._gguf.dequantize(tensor.data[piece.rows], tensor.tensor_type)
        if self._kind == "llama" and piece.hf.endswith(("q_proj.weight", "k_proj.weight")):
            heads = block.reshape(-1, self.architecture.head_dim // 2, 2, block.shape[-1])
            block = heads.swapaxes(1, 2).reshape(block.shape)
        return piece.to_param(block)

    def fingerprint(self) -> str:
        """See `Weights`."""
        status = self._file.stat()
        return repr((str(self._file.resolve()), status.st_size, status.st_mtime_ns))

    def _refuse(self, reason: str) -> NoReturn:
        raise UserError(f"{self.name}: {reason}")

    def _open(self) -> Any:
        """A reader, which has located all tensors within the file."""
        try:
            return self._gguf.GGUFReader(self._file)
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            reason = f"is truncated, or no GGUF file ({one_line(error)[:100]})"
        raise UserError(f"{self.name}: {reason}; {REMEDY}") from None

    def _read_fields(self, reader: Any) -> dict[str, Any]:
        """The fields; of the long lists, such as the vocabulary, only their lengths."""
        array = self._gguf.GGUFValueType.ARRAY
        try:
            return {
                name: len(field.data) if field.types[:1] == [array] else field.contents()
                for name, field in reader.fields.items()
            }
        except ValueError as error:  # a string that is no UTF-8
            raise UserError(
                f"{self.name}: is damaged ({one_line(error)[:100]}); {REMEDY}"
            ) from None

    def _config(self) -> dict[str, Any]:
        """The content of a config.json that says the same."""
        found = {hf: self._fields.get(f"{self._kind}.{name}") for hf, (name, _) in _FIELDS.items()}
        for hf, (name, required) in _FIELDS.items():
            if required and found[hf] is None:
                self._refuse(f"{self._kind}.{name} is missing; {REMEDY}")
        embedding = self._tensors.get("token_embd.weight")
        if embedding is None:
            self._refuse(f"token_embd.weight is missing; {REMEDY}")
        given = {hf: _shortest(value) for hf, value in found.items() if value is not None}
        heads = given["num_attention_heads"]
        config = {
            "model_type": MODEL_TYPES[self._kind],
            "architectures": [f"{MODEL_TYPES[self._kind].capitalize()}ForCausalLM"],
            "num_key_value_heads": heads,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            **given,
            "vocab_size": int(embedding.shape[-1]),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            **self._special_tokens(),
        }
        if "head_dim" not in config:  # qwen3 has another default
            config["head_dim"] = config["hidden_size"] // heads
        self._check_supported(config)
        scaling = self._scaling(config)
        return config | ({"rope_scaling": scaling} if scaling else {})

    def _special_tokens(self) -> dict[str, Any]:
        tokens = self._fields.get
        ends = [tokens(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
        stops = list(dict.fromkeys(i for i in ends if i is not None))
        return {
            "bos_token_id": tokens("tokenizer.ggml.bos_token_id"),
            "eos_token_id": stops if len(stops) > 1 else next(iter(stops), None),
        }

    def _check_supported(self, config: dict[str, Any]) -> None:
        """Refuse what llama.cpp computes under the same architecture, and we do not."""
        for name, value in (
            ("expert_count", 0),
            ("attention.value_length", config["head_dim"]),
            ("rope.dimension_count", config["head_dim"]),
            ("attention.sliding_window", 0),
        ):
            found = self._fields.get(f"{self._kind}.{name}", value)
            if found != value:
                self._refuse(f"{self._kind}.{name}={found}: must be {value}; not supported")

    def _scaling(self, config: dict[str, Any]) -> dict[str, Any] | None:
        """The scaling of the rotary embedding."""
        if _ROPE_FACTORS in self._tensors:
            return self._llama3(config)
        prefix = f"{self._kind}.rope.scaling."
        given = {k[len(prefix) :]: v for k, v in self._fields.items() if k.startswith(prefix)}
        kind = given.get("type", "none")
        if kind == "none":
            return None
        used = {"linear": {"factor"}, "yarn": {"factor", "original_context_length"}}
        if kind not in used or set(given) - {"type", "finetuned"} != used[kind]:
            shown = ", ".join(f"{name}={value}" for name, value in given.items())
            self._refuse(f"{prefix}*: {shown:.100}: not supported; linear and yarn are")
        scaling = {"rope_type": kind, "factor": _shortest(given["factor"])}
        if kind == "yarn":
            scaling["original_max_position_embeddings"] = given["original_context_length"]
        return scaling

    def _llama3(self, config: dict[str, Any]) -> dict[str, Any] | None:
        """Llama 3's scaling, of which the file has only the divisor of each frequency [H/2]."""
        tensor = self._tensors[_ROPE_FACTORS]
        divisors = self._gguf.dequantize(tensor.data, tensor.tensor_type)
        factor = float(f"{divisors.max():.6g}")
        if factor == 1:
            return None
        axes = np.arange(0, config["head_dim"], 2) / config["head_dim"]
        frequency = config["rope_theta"] ** -axes
        scaled = Llama3(factor, 1.0, 4.0, _LLAMA3_CONTEXT).scale(jnp.asarray(frequency), 0.0)
        if divisors.shape != axes.shape or not np.allclose(frequency / scaled, divisors, 1e-4):
            self._refuse(f"{_ROPE_FACTORS}: must be the factors of Llama 3; not supported")
        return {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": _LLAMA3_CONTEXT,
        }

    def _check_tensors(self) -> None:
        """Names and shapes must be those of the architecture; every type must be known."""
        gguf = self._gguf
        arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self._kind)
        names = gguf.get_tensor_name_map(arch, self.architecture.num_layers)
        shapes = tensors(self.architecture)
        self._names = {
            hf: names.get_name(hf, try_suffixes=(".weight", ".bias")) or hf for hf in shapes
        }
        expected = {self._names[hf]: shape for hf, shape in shapes.items()}
        found = {
            name: tuple(tensor.shape.tolist()[::-1])
            for name, tensor in self._tensors.items()
            if name != _ROPE_FACTORS
        }
        compare(self.name, expected, found, "tensors")
        for name in expected:
            tensor = self._tensors[name]
            try:
                gguf.dequantize(tensor.data[:1], tensor.tensor_type)
            except (NotImplementedError, ValueError):
                self._refuse(f"{name}: {tensor.tensor_type.name} is not supported by gguf")


def _shortest(value: Any) -> Any:
    """A number of a config: a float32 as its shortest decimal, 1e-05 and not 9.99999974e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
