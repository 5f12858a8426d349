"""Shapes and constants of a model, read from a Hugging Face `config.json`.

Letters that name the axes of arrays throughout the package:

    B rows of a batch      T tokens of a row     D model width       F width of the MLP
    N query heads          K key/value heads     G = N / K           H width of a head
    V vocabulary           L layers               E experts              J experts of a token
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxs1.config import UserError, one_line
from jaxs1.model.hf_config import ExpertSpec, Fields, check_supported, experts, rope
from jaxs1.model.rope import Rope

#: Far more than any published model has; a mistyped number must not become a long list of tensors.
MAX_LAYERS = 1000


@dataclass(frozen=True)
class Architecture:
    """A decoder of one of the families in `hf_config.FAMILIES`.

    `experts` is None in a dense model; otherwise `intermediate_size` is not used.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rope: Rope
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    initializer_range: float = 0.02
    experts: ExpertSpec | None = None

    @classmethod
    def from_hf(cls, config: dict[str, Any], source: str) -> Architecture:
        """Read a `config.json`.

        Args:
            config: its content
            source: its path, for error messages

        Raises:
            UserError: a missing key, a value of a wrong type or out of range, an unsupported model
                type or feature, or widths that are not divisible, each named with its value.
        """
        fields = Fields(config, source)
        family = check_supported(fields)
        heads, width = fields.count("num_attention_heads"), fields.count("hidden_size")
        if "num_key_value_heads" not in config and family.kv_heads:
            raise UserError(f"{source}: num_key_value_heads is missing; add it to config.json")
        architecture = cls(
            vocab_size=fields.count("vocab_size"),
            hidden_size=width,
            intermediate_size=fields.count("intermediate_size"),
            num_layers=fields.count("num_hidden_layers", maximum=MAX_LAYERS),
            num_heads=heads,
            num_kv_heads=fields.count("num_key_value_heads", heads),
            head_dim=fields.count("head_dim", family.head_dim or _head_dim(fields)),
            max_position_embeddings=fields.count("max_position_embeddings"),
            rope=rope(fields, family),
            rms_norm_eps=fields.number("rms_norm_eps", most=1),
            tie_word_embeddings=fields.flag("tie_word_embeddings"),
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
            initializer_range=fields.number("initializer_range", 0.02),
            experts=experts(fields) if family.has_experts else None,
        )
        architecture._check(source)
        return architecture

    def _check(self, source: str) -> None:
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
        return self._count(None if self.experts is None else self.experts.count)

    @property
    def active_parameters(self) -> int:
        """Number of parameters that a token uses: of a mixture of experts, those it chooses."""
        return self._count(None if self.experts is None else self.experts.per_token)

    @property
    def active_width(self) -> int:
        """Width of the MLPs that a token uses."""
        experts = self.experts
        return self.intermediate_size if experts is None else experts.per_token * experts.width

    @property
    def expert_parameters(self) -> int:
        """Number of parameters of all experts."""
        if self.experts is None:
            return 0
        return self.num_layers * self.experts.count * 3 * self.hidden_size * self.experts.width

    @property
    def size(self) -> str:
        """Number of parameters, for people."""
        active = "" if self.experts is None else f", {self.active_parameters:,} active for a token"
        return f"{self.num_parameters:,} parameters{active}"

    def _count(self, experts: int | None) -> int:
        """Number of parameters with this number of experts in each layer."""
        d, h = self.hidden_size, self.head_dim
        q, kv = self.num_heads * h, self.num_kv_heads * h
        layer = d * (2 * q + 2 * kv) + 2 * d
        if self.experts is None or experts is None:
            layer += 3 * d * self.intermediate_size
        else:
            layer += 3 * d * self.experts.width * experts + d * self.experts.count
        layer += (q + 2 * kv) * self.qkv_bias + 2 * h * self.qk_norm
        heads = 1 if self.tie_word_embeddings else 2
        return self.num_layers * layer + heads * self.vocab_size * d + d

    def train_flops(self, num_tokens: int, num_token_pairs: int) -> float:
        """FLOPs of one forward and backward pass, without recomputation.

        Six per matrix parameter that a token uses (the embedding lookup is free), and in attention
        twelve per (query, key) pair, head dimension and layer.

        Args:
            num_tokens: number of tokens without padding
            num_token_pairs: (query, key) pairs of causal attention: sum of n (n + 1) / 2
        """
        embedding = self.vocab_size * self.hidden_size
        matrices = self.active_parameters - (0 if self.tie_word_embeddings else embedding)
        attention = 12 * self.num_layers * self.num_heads * self.head_dim
        return 6.0 * matrices * num_tokens + attention * num_token_pairs


def _head_dim(fields: Fields) -> int:
    """The width of a head where neither config.json nor the family has one."""
    width, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    if fields.config.get("head_dim") is None and width % heads:
        fields.refuse("hidden_size", f"must be a multiple of num_attention_heads={heads}")
    return width // heads


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a `config.json`; raises `UserError` if it is missing or malformed."""
    try:
        config = json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a config.json") from None
    except (ValueError, RecursionError) as error:
        reason = one_line(error)[:100]
        raise UserError(f"{path}: is not valid JSON ({reason}); copy it again") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: must contain a JSON object, contains {type(config).__name__}")
    return config
