"""A GGUF file written here by the package `gguf`, from a random model of transformers."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from convert import from_gguf, gguf_weights
from convert.from_gguf import main
from jaxs1.config import UserError
from jaxs1.data.tokenizer import load_tokenizer, train_tokenizer
from tests.numerics import assert_close
from tests.tiny_models import hf_model

gguf = pytest.importorskip("gguf")
TEXT = "the first prompt, and 12 others: don't\n\n  <|im_start|>user"
#: Published constants of Llama 3.1.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def permuted(weight, heads):
    """The rows of q or k as llama.cpp stores them."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def write(file, model, *, kind=None, quantize=False, tokenizer=None, **fields):
    """Write a model as llama.cpp's converter does; wide matrices may be Q8_0, others F16."""
    config, file = model.config, str(file)
    kind = kind or config.model_type
    writer = gguf.GGUFWriter(file, kind)
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for name, value in fields.items():
        getattr(writer, f"add_{name}")(value)
    if tokenizer is not None:
        content = json.loads((tokenizer / "tokenizer.json").read_text())
        vocabulary = content["model"]["vocab"] | {
            token["content"]: token["id"] for token in content["added_tokens"]
        }
        special = {token["content"] for token in content["added_tokens"]}
        tokens = sorted(vocabulary, key=vocabulary.get)
        normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(tokens)
        writer.add_token_types([control if t in special else normal for t in tokens])
        writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
        writer.add_eos_token_id(tokens.index("<|im_end|>"))
        writer.add_chat_template("{{ messages }}")
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight, layer = tensor.numpy(), name.split(".")[-2]
        if kind == "llama" and layer in heads:
            weight = permuted(weight, heads[layer])
        types = gguf.GGMLQuantizationType
        wide = types.Q8_0 if weight.shape[-1] % 32 == 0 else types.F16
        form = wide if quantize and weight.ndim == 2 else types.F32
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(stored, gguf.quantize(weight, form), raw_dtype=form)
    if getattr(config, "rope_parameters", {}).get("rope_type") == "llama3":
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        axes = torch.arange(0, config.head_dim, 2) / config.head_dim
        divisors = config.rope_parameters["rope_theta"] ** -axes / scaled
        writer.add_tensor("rope_freqs.weight", divisors.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    "kind", ["llama-tied-9-3", "qwen2-untied-10-2", "qwen3-tied-8-2", "mistral-untied-8-2"]
)
def test_tensors_and_config_are_the_models(kind, tmp_path):
    model = hf_model(kind, layers=2)
    write(tmp_path / "a.gguf", model, kind="llama" if kind.startswith("mistral") else None)
    main([str(tmp_path / "a.gguf"), str(tmp_path / "hf")])
    found, expected = load_file(tmp_path / "hf/model.safetensors"), model.state_dict()
    if model.config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), err_msg=name)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        logits, expected = loaded(ids).logits, model(ids).logits
    assert_close(logits.numpy(), expected.numpy(), "hidden and logits = transformers")


@pytest.mark.parametrize("kind", ["llama-tied-9-3", "qwen2-untied-4-4"])
def test_quantized_tensors_are_those_that_transformers_loads(kind, tmp_path):
    pytest.importorskip("accelerate")
    write(tmp_path / "a.gguf", hf_model(kind, layers=2), quantize=True)
    from_gguf.from_gguf(tmp_path / "a.gguf", tmp_path / "hf")
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="a.gguf", dtype=torch.float32
    )
    found = load_file(tmp_path / "hf/model.safetensors")
    expected = dict(oracle.named_parameters())  # a tied head once
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.detach().numpy(), err_msg=name)


def test_dtype(tmp_path):
    write(tmp_path / "a.gguf", hf_model("qwen3-tied-8-2", layers=1))
    main([str(tmp_path / "a.gguf"), str(tmp_path / "hf"), "--dtype", "bfloat16"])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert model.dtype == torch.bfloat16
    assert json.loads((tmp_path / "hf/config.json").read_text())["torch_dtype"] == "bfloat16"


def test_llama3_scaling_comes_back(tmp_path):
    model = hf_model("llama-tied-9-3", layers=1, rope_parameters=LLAMA3)
    write(tmp_path / "a.gguf", model)
    config = gguf_weights.GgufWeights(tmp_path / "a.gguf").config
    assert config["rope_scaling"] | {"rope_theta": config["rope_theta"]} == LLAMA3


def test_linear_scaling(tmp_path):
    linear = gguf.RopeScalingType.LINEAR
    model = hf_model("llama-tied-9-3", layers=1)
    write(tmp_path / "a.gguf", model, rope_scaling_type=linear, rope_scaling_factor=4.0)
    config = gguf_weights.GgufWeights(tmp_path / "a.gguf").config
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def test_tokenizer_encodes_and_has_its_template(tmp_path):
    model = hf_model("qwen2-untied-10-2", layers=1, vocab=384)
    train_tokenizer(["the first prompt and the second"], tmp_path / "tokenizer")
    ours = load_tokenizer(str(tmp_path / "tokenizer"))
    write(tmp_path / "a.gguf", model, tokenizer=tmp_path / "tokenizer")
    from_gguf.from_gguf(tmp_path / "a.gguf", tmp_path / "hf")
    found = load_tokenizer(str(tmp_path / "hf"))
    assert found(TEXT)["input_ids"] == ours(TEXT)["input_ids"]
    assert found.chat_template == "{{ messages }}"
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["eos_token_id"] == found.eos_token_id == ours.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_one_line(share, tmp_path):
    file = tmp_path / "a.gguf"
    write(file, hf_model("llama-tied-9-3", layers=1))
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(UserError, match="is truncated, or no GGUF file") as error:
        main([str(file), str(tmp_path / "hf")])
    assert "\n" not in str(error.value) and not (tmp_path / "hf").exists()


def test_foreign_and_missing_files_are_one_line(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(UserError, match="no GGUF file"):
        main([str(tmp_path / "a.gguf"), str(tmp_path / "hf")])
    with pytest.raises(UserError, match="cannot be read"):
        main([str(tmp_path / "b.gguf"), str(tmp_path / "hf")])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "gpt2"}, "general.architecture=gpt2: must be one of llama, qwen2, qwen3"),
        ({"expert_count": 8}, "llama.expert_count=8: must be 0"),
        ({"value_length": 24}, "llama.attention.value_length=24: must be 16"),
        (
            {"rope_scaling_factor": 2.0, "rope_scaling_type": "longrope"},
            "type=longrope: not supported; linear",
        ),
    ],
)
def test_unsupported_models_are_one_line(fields, message, tmp_path):
    model = hf_model("llama-tied-9-3", layers=0)
    if "rope_scaling_type" in fields:
        fields = fields | {"rope_scaling_type": gguf.RopeScalingType.LONGROPE}
    write(tmp_path / "a.gguf", model, **fields)
    with pytest.raises(UserError, match=message):
        main([str(tmp_path / "a.gguf"), str(tmp_path / "hf")])


def test_missing_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(
        UserError, match=r"gguf: gguf is not installed; pip install 'jaxs1\[gguf\]'"
    ):
        main([str(tmp_path / "a.gguf"), str(tmp_path / "hf")])
