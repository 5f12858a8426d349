"""Shapes and constants of a model, read from a Hugging Face `config.json`.

Letters that name the axes of arrays throughout the package:

    B rows of a batch      T tokens of a row     D model width       F width of the MLP
    N query heads          K key/value heads     G = N / K           H width of a head
    V vocabulary           L layers
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxs1.config import UserError

_COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class Architecture:
    """A dense Qwen2, Qwen2.5 or Qwen3 decoder.

    Qwen2 has biases on q, k and v; Qwen3 has none and normalises each head of q and k instead.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    initializer_range: float = 0.02

    @classmethod
    def from_hf(cls, config: dict[str, Any], source: str) -> Architecture:
        """Read a `config.json`.

        Args:
            config: its content
            source: its path, for error messages

        Raises:
            UserError: a missing key, an unsupported model type or feature, or widths that are not
                divisible, each named with its value.
        """
        _check_supported(config, source)
        model_type, rope = config["model_type"], config.get("rope_parameters") or {}

        def get(name: str, default: Any = None) -> Any:
            value = config.get(name, default)
            if value is None:
                raise UserError(f"{source}: {name} is missing; add it to config.json")
            return value

        heads = get("num_attention_heads")
        architecture = cls(
            vocab_size=get("vocab_size"),
            hidden_size=get("hidden_size"),
            intermediate_size=get("intermediate_size"),
            num_layers=get("num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=get("num_key_value_heads", heads),
            head_dim=config.get("head_dim") or get("hidden_size") // heads,
            max_position_embeddings=get("max_position_embeddings"),
            rope_theta=float(rope.get("rope_theta") or get("rope_theta")),
            rms_norm_eps=float(get("rms_norm_eps")),
            tie_word_embeddings=bool(get("tie_word_embeddings", False)),
            qkv_bias=model_type == "qwen2",
            qk_norm=model_type == "qwen3",
            initializer_range=float(get("initializer_range", 0.02)),
        )
        architecture._check(source)
        return architecture

    def _check(self, source: str) -> None:
        for name, value in dataclasses.asdict(self).items():
            if name not in _COUNTS:
                continue
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{source}: {name}={value!r}: must be a positive integer")
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"{source}: num_key_value_heads={self.num_kv_heads}: must divide "
                f"num_attention_heads={self.num_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"{source}: head_dim={self.head_dim}: must be even (rotary embedding)")

    @property
    def num_parameters(self) -> int:
        """Number of parameters; a tied embedding counts once."""
        d, f, h = self.hidden_size, self.intermediate_size, self.head_dim
        q, kv = self.num_heads * h, self.num_kv_heads * h
        layer = d * (2 * q + 2 * kv) + 3 * d * f + 2 * d
        layer += (q + 2 * kv) * self.qkv_bias + 2 * h * self.qk_norm
        heads = 1 if self.tie_word_embeddings else 2
        return self.num_layers * layer + heads * self.vocab_size * d + d

    def train_flops(self, num_tokens: int, num_token_pairs: int) -> float:
        """FLOPs of one forward and backward pass, without recomputation.

        Six per matrix parameter and token (the embedding lookup is free), and in attention twelve
        per (query, key) pair, head dimension and layer.

        Args:
            num_tokens: number of tokens without padding
            num_token_pairs: (query, key) pairs of causal attention: sum of n (n + 1) / 2
        """
        embedding = self.vocab_size * self.hidden_size
        matrices = self.num_parameters - (0 if self.tie_word_embeddings else embedding)
        attention = 12 * self.num_layers * self.num_heads * self.head_dim
        return 6.0 * matrices * num_tokens + attention * num_token_pairs


def _check_supported(config: dict[str, Any], source: str) -> None:
    """Refuse model types and features that would be computed wrongly."""
    model_type = config.get("model_type")
    if model_type not in ("qwen2", "qwen3"):
        raise UserError(
            f"{source}: model_type={model_type!r}: must be qwen2 or qwen3 (dense); "
            "other architectures are not supported"
        )
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    if rope_type != "default":
        raise UserError(
            f"{source}: rope type {rope_type!r}: only 'default' is supported; remove "
            "rope_scaling from config.json (contexts up to max_position_embeddings need none)"
        )
    if config.get("use_sliding_window"):
        raise UserError(
            f"{source}: use_sliding_window=true: sliding windows are not supported; set it to "
            "false, its value in every published Qwen2.5 and Qwen3 dense model"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(f"{source}: hidden_act={config['hidden_act']!r}: must be silu")
    if model_type == "qwen3" and config.get("attention_bias"):
        raise UserError(f"{source}: attention_bias=true: Qwen3 models have no attention bias")


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a `config.json`; raises `UserError` if it is missing or malformed."""
    try:
        config = json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a config.json") from None
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: must contain a JSON object, contains {type(config).__name__}")
    return config
