"""Fields of a Hugging Face `config.json`, checked; features that would be computed wrongly.

Everything in the file is untrusted: a value that is missing, null, NaN, of another type or out of
range is refused with the name that it has in the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NoReturn

from jaxs1.config import UserError

#: Largest size of an axis: positions and token ids are int32.
MAX_COUNT = 2**31 - 1

#: Fields that quantized models have: transformers', compressed-tensors', MLX's.
_QUANTIZATION = ("quantization_config", "compression_config", "quantization")

#: (field, the only value that is supported, remedy).
_FIXED: tuple[tuple[str, Any, str], ...] = (
    ("hidden_act", "silu", "other activations are not supported"),
    (
        "use_sliding_window",
        False,
        "sliding windows are not supported; set it to false, its value in every published Qwen2.5 "
        "and Qwen3 dense model",
    ),
    ("use_mrope", False, "multimodal rotary embeddings are not supported"),
    ("is_causal", True, "models that attend in both directions are not supported"),
    ("partial_rotary_factor", 1, "rotary embeddings of a part of each head are not supported"),
)


@dataclass(frozen=True)
class Fields:
    """Typed access to a `config.json`; every method raises `UserError` with the field's name.

    Args:
        config: its content
        source: its path, for messages
    """

    config: dict[str, Any]
    source: str

    def refuse(self, name: str, constraint: str) -> NoReturn:
        """Raise the error of a field."""
        value = repr(self.config.get(name))
        shown = value if len(value) <= 40 else f"{value[:40]}..."
        raise UserError(f"{self.source}: {name}={shown}: {constraint}")

    def count(self, name: str, default: int | None = None, maximum: int = MAX_COUNT) -> int:
        """A positive integer; missing or null: the default, or an error if there is none."""
        value = self._get(name, default)
        if type(value) is not int or value < 1:
            self.refuse(name, "must be a positive integer")
        if value > maximum:
            self.refuse(name, f"must be at most {maximum}")
        return value

    def number(
        self,
        name: str,
        default: float | None = None,
        *,
        key: str = "",
        least: float = 1e-30,
        most: float = 1e30,
    ) -> float:
        """A number of float32's range; missing or null: the default, or an error without one.

        Args:
            name: field
            default: value of a missing field
            key: key inside the field's object
            least: smallest value
            most: largest value
        """
        value = self.object(name).get(key) if key else self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(name, f"{key} must be a number".lstrip())
        if not least <= value <= most:  # nor is NaN
            self.refuse(name, f"{key} must be between {least:g} and {most:g}".lstrip())
        return float(value)

    def flag(self, name: str) -> bool:
        """A boolean; missing or null: false."""
        value = self._get(name, False)
        if type(value) is not bool:
            self.refuse(name, "must be true or false")
        return value

    def object(self, name: str) -> dict[str, Any]:
        """A JSON object; missing or null: an empty one."""
        value = self._get(name, {})
        if not isinstance(value, dict):
            self.refuse(name, "must be an object, or null")
        return value

    def _get(self, name: str, default: Any) -> Any:
        value = self.config.get(name)
        value = default if value is None else value
        if value is None:
            raise UserError(f"{self.source}: {name} is missing; add it to config.json")
        return value


def check_supported(fields: Fields) -> None:
    """Refuse model types and features that would be computed wrongly; raises `UserError`."""
    config = fields.config
    if config.get("model_type") not in ("qwen2", "qwen3"):
        fields.refuse(
            "model_type", "must be qwen2 or qwen3 (dense); other architectures are not supported"
        )
    for name in _QUANTIZATION:
        if config.get(name) not in (None, {}):
            method = config[name].get("quant_method") if isinstance(config[name], dict) else None
            fields.refuse(
                name,
                f"quantized models {f'({method:.20}) ' if isinstance(method, str) else ''}are not "
                "supported; give the original model in bfloat16, float16 or float32",
            )
    for name, supported, remedy in _FIXED:
        value = config.get(name)
        if value is not None and (
            value != supported or isinstance(value, bool) is not isinstance(supported, bool)
        ):
            fields.refuse(name, f"must be {str(supported).lower()}; {remedy}")
    if fields.flag("attention_bias") and config["model_type"] == "qwen3":
        fields.refuse("attention_bias", "must be false; Qwen3 models have no attention bias")
    if config.get("layer_types") is not None:
        types = config["layer_types"]
        if not isinstance(types, list) or any(kind != "full_attention" for kind in types):
            fields.refuse("layer_types", "must be a list of full_attention; others are unsupported")
    _check_dual_chunks(fields)
    _check_rope(fields)
    token_ids(config, "eos_token_id", fields.source)


def rope_theta(fields: Fields) -> float:
    """Base of the rotary frequencies: transformers 5 moved it into `rope_parameters`."""
    for name in ("rope_scaling", "rope_parameters"):
        if fields.object(name).get("rope_theta") is not None:
            return fields.number(name, key="rope_theta", least=1)
    return fields.number("rope_theta", least=1)


def _check_dual_chunks(fields: Fields) -> None:
    """Dual chunk attention (Qwen2.5-1M) equals causal attention within the first chunk."""
    name = "dual_chunk_attention_config"
    chunks = fields.object(name)
    if not chunks:
        return
    size, local = chunks.get("chunk_size"), chunks.get("local_size")
    if type(size) is not int or type(local) is not int or not 0 <= local < size:
        fields.refuse(name, "needs integers chunk_size and local_size, the larger one first")
    fields.refuse(
        name,
        f"is not supported; contexts up to chunk_size - local_size = {size - local} do not need "
        f"it: remove it, and set max_position_embeddings to at most {size - local}",
    )


def _check_rope(fields: Fields) -> None:
    scaling, parameters = fields.object("rope_scaling"), fields.object("rope_parameters")
    if scaling and parameters:
        fields.refuse("rope_scaling", "contradicts rope_parameters; remove one of them")
    name = "rope_scaling" if scaling else "rope_parameters"
    rope = scaling or parameters
    if any(isinstance(value, dict) for value in rope.values()):
        fields.refuse(name, "rotary embeddings that differ between layers are not supported")
    if rope.get("partial_rotary_factor") not in (None, 1):
        fields.refuse(name, "partial_rotary_factor must be 1")
    kind = rope.get("rope_type") or rope.get("type")
    if kind not in (None, "default"):
        raise UserError(
            f"{fields.source}: {name}: rope type {kind!r:.20} is not supported, and removing it "
            f"changes the model: {_bound(fields, kind, rope)}"
        )


def _bound(fields: Fields, kind: Any, rope: dict[str, Any]) -> str:
    """The contexts for which a model is right without its scaling of the rotary embedding."""
    key = "original_max_position_embeddings"
    original = rope.get(key) or fields.config.get(key)
    name = key if original else "max_position_embeddings"
    length = original or fields.config.get(name)
    if not isinstance(kind, str) or kind not in ("yarn", "dynamic") or type(length) is not int:
        return "its frequencies differ in every context; give a model without"
    if not math.isfinite(length) or not 0 < length <= MAX_COUNT:
        return f"{name} must be a positive integer"
    if kind == "dynamic":
        return f"only contexts up to {name}={length} are right without it"
    return (
        f"only weights that were trained without it (Qwen's own are) are right without, in contexts"
        f" up to {name}={length}; set max_position_embeddings to that too"
    )


def token_ids(config: dict[str, Any], name: str, source: str) -> tuple[int, ...]:
    """The ids in a field that holds one, a list of them, or null; raises `UserError`."""
    value = config.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(token) is not int or not 0 <= token <= MAX_COUNT for token in ids):
        Fields(config, source).refuse(name, "must be a token id, a list of token ids, or null")
    return tuple(ids)
