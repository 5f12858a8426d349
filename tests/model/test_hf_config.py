"""Every field of a config.json that the model depends on is checked, and named if it is wrong."""

import json
import math

import pytest
import transformers

from jaxs1.config import UserError
from jaxs1.model.architecture import Architecture, read_config
from jaxs1.model.hf_config import ExpertSpec
from tests.conftest import ROOT

CONFIG = json.loads((ROOT / "configs/models/qwen3-0.6b.json").read_text())
QWEN2 = json.loads((ROOT / "configs/models/qwen2.5-0.5b.json").read_text())
EXPERTS = json.loads((ROOT / "configs/models/qwen3-30b-a3b.json").read_text())
COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
NUMBERS = ("rope_theta", "rms_norm_eps", "initializer_range")
FLAGS = ("tie_word_embeddings", "use_sliding_window", "attention_bias")


def refusal(config, *words):
    with pytest.raises(UserError) as caught:
        Architecture.from_hf(config, "config.json")
    message = str(caught.value)
    assert "\n" not in message and len(message) <= 300, message
    assert all(word in message for word in ("config.json: ", *words)), message
    return message


@pytest.mark.parametrize("field", COUNTS)
@pytest.mark.parametrize(
    "value", [0, -1, 1.0, 0.5, math.nan, math.inf, "64", True, [8], {}, 2**31, 10**30]
)
def test_counts(field, value):
    refusal(CONFIG | {field: value}, f"{field}={value!r}")


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", [0, 0.0, -1e-6, math.nan, math.inf, 1e300, "1e-6", True, [1], {}])
def test_numbers(field, value):
    refusal(CONFIG | {field: value}, f"{field}={value!r}")


@pytest.mark.parametrize("field", FLAGS)
@pytest.mark.parametrize("value", [0, 1, "false", [], {}, 0.5])
def test_flags(field, value):
    refusal(CONFIG | {field: value}, f"{field}={value!r}")


@pytest.mark.parametrize("field", [*COUNTS, *NUMBERS, "model_type"])
@pytest.mark.parametrize("config", [CONFIG, QWEN2])
def test_missing_fields_are_named_unless_transformers_has_the_same_default(field, config):
    without = {name: value for name, value in config.items() if name != field}
    if field in ("head_dim", "initializer_range"):
        a = Architecture.from_hf(without, "config.json")
        default = transformers.AutoConfig.for_model(**without)
        assert a.initializer_range == default.initializer_range
        width = default.hidden_size // default.num_attention_heads
        assert a.head_dim == getattr(default, "head_dim", width)
    else:
        refusal(without, field)


@pytest.mark.parametrize("value", [-1, 1.5, "<|im_end|>", [1, -2], [None], {"a": 1}, True, 2**40])
def test_stop_tokens(value):
    refusal(CONFIG | {"eos_token_id": value}, "eos_token_id=")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            ["layer_types", "full_attention"],
        ),
        (
            {"layer_types": ["sliding_attention"], "sliding_window": 4096},
            ["sliding_window=4096", "max_position_embeddings to at most 4096"],
        ),
        ({"layer_types": ["chunked_attention"]}, ["layer_types", "full_attention"]),
        ({"use_sliding_window": True, "sliding_window": 4096}, ["sliding_window=4096"]),
        ({"model_type": "qwen2_5_vl", "vision_config": {"depth": 1}}, ["qwen2_5_vl", "images"]),
        ({"model_type": "deepseek_v3", "kv_lora_rank": 512}, ["deepseek_v3", "MLA"]),
        ({"model_type": "qwen2_moe", "shared_expert_intermediate_size": 8}, ["qwen2_moe", "share"]),
        ({"layer_types": 3}, ["layer_types=3"]),
        ({"is_causal": False}, ["is_causal=False"]),
        ({"use_mrope": True}, ["use_mrope=True"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor=0.5"]),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
        ({"rope_scaling": "yarn"}, ["rope_scaling='yarn'", "object"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, ["differ between layers"]),
        ({"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 1e4}}, ["one of"]),
        ({"rope_parameters": {"rope_theta": math.nan}}, ["rope_parameters", "rope_theta"]),
        ({"rope_parameters": {"rope_theta": 0}}, ["rope_parameters", "rope_theta"]),
        ({"num_hidden_layers": 1001}, ["num_hidden_layers=1001", "1000"]),
        ({"model_type": ["qwen2"]}, ["model_type=['qwen2']"]),
    ],
)
def test_features_that_would_be_computed_wrongly(change, words):
    refusal(CONFIG | change, *words)


def test_heads_that_do_not_divide_the_width():
    refusal(QWEN2 | {"num_attention_heads": 5, "num_key_value_heads": 1}, "hidden_size=896", "=5")


@pytest.mark.parametrize(
    ("window", "positions", "accepted"),
    [(None, 32768, True), (4096, 4096, True), (4096, 32768, False), (..., 32768, False),
     (..., 4096, True), (0, 32768, False), ("x", 32768, False)],
)  # fmt: skip
def test_mistrals_window(window, positions, accepted):
    """A missing one is 4096 in transformers."""
    config = CONFIG | {"model_type": "mistral", "max_position_embeddings": positions}
    config |= {} if window is ... else {"sliding_window": window}
    if window is ...:
        config.pop("sliding_window", None)
    if accepted:
        assert Architecture.from_hf(config, "config.json").max_position_embeddings == positions
    else:
        refusal(config, "sliding_window")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"decoder_sparse_step": 2}, ["decoder_sparse_step=2", "layers without experts"]),
        ({"mlp_only_layers": [0]}, ["mlp_only_layers=[0]", "layers without experts"]),
        ({"num_experts": 0}, ["num_experts=0"]),
        ({"num_local_experts": 64}, ["num_local_experts=64", "num_experts=128"]),
        ({"num_experts_per_tok": 129}, ["num_experts_per_tok=129", "128"]),
        ({"moe_intermediate_size": "768"}, ["moe_intermediate_size='768'"]),
        ({"norm_topk_prob": 1}, ["norm_topk_prob=1"]),
        ({"router_aux_loss_coef": -0.1}, ["router_aux_loss_coef=-0.1"]),
    ],
)
def test_fields_of_experts(change, words):
    refusal(EXPERTS | change, *words)


def test_defaults_of_experts_are_those_of_transformers():
    names = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob",
             "router_aux_loss_coef", "decoder_sparse_step", "mlp_only_layers")  # fmt: skip
    given, default = (
        Architecture.from_hf(config, "config.json").experts
        for config in (EXPERTS, {k: v for k, v in EXPERTS.items() if k not in names})
    )
    other = transformers.Qwen3MoeConfig()
    assert given == ExpertSpec(128, 8, 768, True, 0.001)
    assert default == ExpertSpec(
        other.num_experts,
        other.num_experts_per_tok,
        other.moe_intermediate_size,
        other.norm_topk_prob,
        other.router_aux_loss_coef,
    )


def test_transformers_5_has_another_name_for_the_number_of_experts():
    config = {k: v for k, v in EXPERTS.items() if k != "num_experts"} | {"num_local_experts": 64}
    assert Architecture.from_hf(config, "config.json").experts.count == 64


def test_llamas_defaults_are_those_of_transformers():
    names = ("num_key_value_heads", "rope_theta", "head_dim")
    config = {k: v for k, v in CONFIG.items() if k not in names} | {"model_type": "llama"}
    a = Architecture.from_hf(config, "config.json")
    other = transformers.AutoConfig.for_model(**config)
    assert a.num_kv_heads == other.num_key_value_heads
    assert (a.rope.theta, a.rope.scaling) == (other.rope_parameters["rope_theta"], None)
    assert a.head_dim == other.head_dim
    refusal(config | {"mlp_bias": True}, "mlp_bias=True")
    refusal(config | {"attention_bias": True}, "attention_bias=True")


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ({"chunk_size": 262144, "local_size": 8192}, ["253952", "max_position_embeddings"]),
        ({"chunk_size": 4096, "local_size": 0}, ["4096", "remove it"]),
        ({"chunk_size": 4096}, ["chunk_size and local_size"]),
        ({"chunk_size": 10, "local_size": 20}, ["chunk_size and local_size"]),
        (True, ["must be an object"]),
    ],
)
def test_dual_chunk_attention_names_the_contexts_that_do_not_need_it(chunks, words):
    refusal(CONFIG | {"dual_chunk_attention_config": chunks}, "dual_chunk_attention_config", *words)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": None, "layer_types": None, "quantization_config": None},
        {"rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        {"layer_types": ["full_attention"] * 28, "dual_chunk_attention_config": {}},
        {"eos_token_id": [1, 2], "is_causal": True, "use_mrope": False},
        {"use_sliding_window": True, "sliding_window": 40960},  # not smaller than the context
        {"use_sliding_window": True, "sliding_window": None},
        {"use_sliding_window": False, "sliding_window": 512},
        {"layer_types": ["sliding_attention"] * 28, "sliding_window": 40960},
    ],
)
def test_harmless_fields(change):
    assert Architecture.from_hf(CONFIG | change, "x") == Architecture.from_hf(CONFIG, "x")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"\x00" * 9, b"[" * 100_000, b"3"]
)
def test_files_that_hold_no_object(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"^config\.json: .*JSON") as caught:
        read_config("config.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
