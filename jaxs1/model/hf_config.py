"""Fields of a Hugging Face `config.json`, checked; features that would be computed wrongly.

Everything in the file is untrusted: a value that is missing, null, NaN, of another type or out of
range is refused with the name that it has in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from jaxs1.config import UserError
from jaxs1.model.rope import Linear, Llama3, Rope, Scaling, Yarn, yarn_attention_factor

_SLIDING = "sliding_attention"
#: Largest size of an axis: positions and token ids are int32.
MAX_COUNT = 2**31 - 1

#: Fields that quantized models have: transformers', compressed-tensors', MLX's.
_QUANTIZATION = ("quantization_config", "compression_config", "quantization")

#: Fields of models of other types, and what they mean.
_FEATURES = {
    "vision_config": "this one reads images",
    "audio_config": "this one reads audio",
    "kv_lora_rank": "this one has multi-head latent attention (MLA)",
    "n_shared_experts": "this one has experts that all tokens share",
    "shared_expert_intermediate_size": "this one has an expert that all tokens share",
}

#: A field, the only value that is supported, and a remedy.
_Fixed = tuple[str, Any, str]

_FIXED: tuple[_Fixed, ...] = (
    ("hidden_act", "silu", "other activations are not supported"),
    ("use_mrope", False, "multimodal rotary embeddings are not supported"),
    ("is_causal", True, "models that attend in both directions are not supported"),
    ("partial_rotary_factor", 1, "rotary embeddings of a part of each head are not supported"),
)
_NO_BIAS: _Fixed = ("attention_bias", False, "of the families, only qwen2 has attention biases")
_NO_MLP_BIAS: _Fixed = ("mlp_bias", False, "biases of the MLP are not supported")


class Family(NamedTuple):
    """What the models of one `model_type` have in common, with the defaults of transformers.

    Args:
        qkv_bias: whether q, k and v have biases
        qk_norm: whether each head of q and k is normalised
        head_dim: width of a head; None: hidden_size / num_attention_heads
        rope_theta: base of the rotary embedding; None: must be given
        kv_heads: whether num_key_value_heads must be given, else it is num_attention_heads
        has_experts: whether its MLPs are mixtures of experts
        fixed: fields with only one supported value
    """

    qkv_bias: bool = False
    qk_norm: bool = False
    head_dim: int | None = None
    rope_theta: float | None = None
    kv_heads: bool = True
    has_experts: bool = False
    fixed: tuple[_Fixed, ...] = ()


FAMILIES = {
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True, head_dim=128, fixed=(_NO_BIAS,)),
    "qwen3_moe": Family(qk_norm=True, has_experts=True, fixed=(_NO_BIAS,)),
    "llama": Family(rope_theta=1e4, kv_heads=False, fixed=(_NO_BIAS, _NO_MLP_BIAS)),
    "mistral": Family(rope_theta=1e4, fixed=(_NO_BIAS, _NO_MLP_BIAS)),
}


@dataclass(frozen=True)
class ExpertSpec:
    """The experts of a layer.

    Args:
        count: number of experts
        per_token: number of experts that each token uses
        width: width of each expert
        renormalise: whether the weights of a token's experts sum to 1
        loss_coefficient: weight of the load-balancing loss in training
    """

    count: int
    per_token: int
    width: int
    renormalise: bool
    loss_coefficient: float


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


def check_supported(fields: Fields) -> Family:
    """The family; refuses types and features that would be computed wrongly with a `UserError`."""
    config = fields.config
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        found = next((f"; {text}" for name, text in _FEATURES.items() if config.get(name)), "")
        fields.refuse("model_type", f"must be one of {known}; others are not supported{found}")
    family = FAMILIES[model_type]
    for name in _QUANTIZATION:
        if config.get(name) not in (None, {}):
            method = config[name].get("quant_method") if isinstance(config[name], dict) else None
            fields.refuse(
                name,
                f"quantized models {f'({method:.20}) ' if isinstance(method, str) else ''}are not "
                "supported; give the original model in bfloat16, float16 or float32",
            )
    for name, supported, remedy in (*_FIXED, *family.fixed):
        value = config.get(name)
        if value is not None and (
            value != supported or isinstance(value, bool) is not isinstance(supported, bool)
        ):
            fields.refuse(name, f"must be {str(supported).lower()}; {remedy}")
    _check_window(fields, always=model_type == "mistral")
    _check_dual_chunks(fields)
    token_ids(config, "eos_token_id", fields.source)
    return family


def experts(fields: Fields) -> ExpertSpec:
    """The experts of a mixture, which every layer must have."""
    if fields.count("decoder_sparse_step", 1) != 1:
        fields.refuse("decoder_sparse_step", "must be 1; layers without experts are not supported")
    if fields.config.get("mlp_only_layers") not in (None, []):
        fields.refuse("mlp_only_layers", "must be []; layers without experts are not supported")
    # transformers 5 writes the second name
    name = "num_experts" if fields.config.get("num_experts") is not None else "num_local_experts"
    count = fields.count(name, 128)
    if fields.config.get("num_local_experts") not in (None, count):
        fields.refuse("num_local_experts", f"contradicts num_experts={count}; remove one of them")
    return ExpertSpec(
        count,
        fields.count("num_experts_per_tok", 8, maximum=count),
        fields.count("moe_intermediate_size", 768),
        fields.flag("norm_topk_prob"),
        fields.number("router_aux_loss_coef", 0.001, least=0),
    )


def _check_window(fields: Fields, *, always: bool) -> None:
    """A window, 4,096 where the file has none, equals causal attention within itself.

    Args:
        fields: of the file
        always: whether the family has a window without saying so
    """
    types = fields.config.get("layer_types") or []
    if not isinstance(types, list) or set(map(str, types)) - {"full_attention", _SLIDING}:
        fields.refuse("layer_types", f"must be a list of full_attention or {_SLIDING}")
    name = "sliding_window"
    window = fields.config.get(name, 4096)
    if window is None and _SLIDING in types:
        fields.refuse("layer_types", f"must be full_attention without a {name}")
    used = fields.flag("use_sliding_window") or always or _SLIDING in types
    if window is None or not used:
        return
    if type(window) is not int or window < 1:
        fields.refuse(name, "must be null or a positive integer")
    if window < fields.count("max_position_embeddings"):
        fields.refuse(
            name,
            f"windows are not supported (a missing one is 4096); contexts up to {window} do not "
            f"need it: set max_position_embeddings to at most {window}",
        )


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


def rope(fields: Fields, family: Family) -> Rope:
    """The rotary embedding; transformers 5 moved all of it into `rope_parameters`."""
    scaling, parameters = fields.object("rope_scaling"), fields.object("rope_parameters")
    if scaling and parameters:
        fields.refuse("rope_scaling", "contradicts rope_parameters; remove one of them")
    name = "rope_scaling" if scaling else "rope_parameters"
    given = scaling or parameters
    if any(isinstance(value, dict) for value in given.values()):
        fields.refuse(name, "rotary embeddings that differ between layers are not supported")
    if given.get("partial_rotary_factor") not in (None, 1):
        fields.refuse(name, "partial_rotary_factor must be 1")
    if given.get("rope_theta") is not None:
        theta = fields.number(name, key="rope_theta", least=1.01)
    else:
        theta = fields.number("rope_theta", family.rope_theta, least=1.01)
    kind = given.get("rope_type") or given.get("type") or "default"
    if not isinstance(kind, str) or kind not in _SCALINGS:
        known = ", ".join(_SCALINGS)
        fields.refuse(name, f"rope type {kind!r:.20} is not supported; the supported are {known}")
    return Rope(theta, _SCALINGS[kind](fields, name))


def _unscaled(fields: Fields, name: str) -> None:
    """Dynamic scaling too, within max_position_embeddings, which no context of ours exceeds."""


def _linear(fields: Fields, name: str) -> Linear:
    return Linear(fields.number(name, key="factor", least=1))


def _llama3(fields: Fields, name: str) -> Llama3:
    scaling = Llama3(
        fields.number(name, key="factor", least=1),
        fields.number(name, key="low_freq_factor"),
        fields.number(name, key="high_freq_factor"),
        _original(fields, name),
    )
    if scaling.low_freq_factor >= scaling.high_freq_factor:
        fields.refuse(name, "low_freq_factor must be below high_freq_factor")
    return scaling


def _yarn(fields: Fields, name: str) -> Yarn:
    given = fields.object(name)

    def number(key: str, default: float) -> float:
        return default if given.get(key) is None else fields.number(name, key=key)

    original = _original(fields, name)
    factor = number("factor", fields.count("max_position_embeddings") / original)
    mscale, of_all = number("mscale", 0), number("mscale_all_dim", 0)
    recommended = yarn_attention_factor(factor)
    if mscale and of_all:
        recommended = yarn_attention_factor(factor, mscale) / yarn_attention_factor(factor, of_all)
    truncate = given.get("truncate", True)
    if type(truncate) is not bool:
        fields.refuse(name, "truncate must be true or false")
    beta_fast, beta_slow = number("beta_fast", 32), number("beta_slow", 1)
    attention_factor = number("attention_factor", recommended)
    return Yarn(factor, original, attention_factor, beta_fast, beta_slow, truncate)


def _original(fields: Fields, name: str) -> int:
    """The context of pretraining."""
    key = "original_max_position_embeddings"
    value = fields.config.get(key) or fields.object(name).get(key)
    if value is None:
        return fields.count("max_position_embeddings")
    if type(value) is not int or not 1 <= value <= MAX_COUNT:
        fields.refuse(name, f"{key} must be a positive integer")
    return value


_SCALINGS: dict[str, Callable[[Fields, str], Scaling | None]] = {
    "default": _unscaled,
    "dynamic": _unscaled,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


def token_ids(config: dict[str, Any], name: str, source: str) -> tuple[int, ...]:
    """The ids in a field that holds one, a list of them, or null; raises `UserError`."""
    value = config.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(token) is not int or not 0 <= token <= MAX_COUNT for token in ids):
        Fields(config, source).refuse(name, "must be a token id, a list of token ids, or null")
    return tuple(ids)
