"""What cannot be read is named in one line of at most 300 characters, with what to do."""

import json
import re
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.from_hf import from_hf
from convert.to_hf import to_hf
from convert.weights import open_weights
from jaxs1.config import UserError
from tests.convert.checkpoints import make_hf, random_tensors, read_bits, reduced, write_hf
from tests.tiny_models import hf_model


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A sound folder; paths in messages are short."""
    monkeypatch.chdir(tmp_path)
    return make_hf(tmp_path / "model").relative_to(tmp_path)


def refused(folder, *words):
    with pytest.raises(UserError) as caught:
        open_weights(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) <= 300, (len(message), message)
    assert all(word in message for word in words), message
    assert str(folder) in message


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model-Q4_K_M.gguf", ["GGUF", "Hugging Face folder"]),
        ("pytorch_model.bin", ["pytorch_model.bin", "save_pretrained"]),
        ("pytorch_model-00001-of-00002.bin", ["PyTorch", "save_pretrained"]),
        ("consolidated.00.pth", ["consolidated.00.pth", "safetensors"]),
        ("model.pt", ["PyTorch", "save_pretrained"]),
        ("global_step500", ["DeepSpeed", "zero_to_fp32.py"]),
        ("__0_0.distcp", ["distributed checkpoint"]),
        ("tf_model.h5", ["TensorFlow"]),
        ("flax_model.msgpack", ["Flax"]),
        ("weights.00.npz", ["MLX"]),
        ("model.onnx", ["ONNX"]),
        ("model-00001-of-00002.safetensors", ["neither model.safetensors nor"]),
        ("adapter_model.safetensors", ["PEFT adapter", "merge_and_unload"]),
    ],
)
def test_files_of_other_formats(model, name, words):
    (model / "model.safetensors").rename(model / name)
    refused(model, *words)
    if "adapter" not in name:
        with pytest.raises(UserError, match="is a file"):
            open_weights(model / name)


def test_weights_one_folder_below(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_hf(tmp_path / "out/checkpoint-500")
    refused(Path("out"), "contains weights in checkpoint-500; give that folder")


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "desc_act": False}},
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"quantization_config": {"load_in_8bit": True}},
        {"compression_config": {"format": "int-quantized"}},
        {"quantization": {"group_size": 64, "bits": 4}},
    ],
)
def test_quantized_configs(model, config):
    edit(model, **config)
    method = config.get("quantization_config", {}).get("quant_method", "")
    refused(model, "quantized models", method, "give the original", next(iter(config)))


@pytest.mark.parametrize("name", ["hf_quant_config.json", "quantize_config.json"])
def test_quantized_models_whose_config_does_not_say_so(model, name):
    (model / name).write_text("{}")
    refused(model, name, "quantized")


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        ("qweight", torch.int32),
        ("weight_scale_inv", torch.bfloat16),
        ("scales", torch.bfloat16),
        ("SCB", torch.bfloat16),
        ("absmax", torch.uint8),
        ("weight", torch.float8_e4m3fn),
    ],
)
def test_quantized_tensors(model, suffix, dtype):
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    tensors[f"model.layers.0.mlp.up_proj.{suffix}"] = torch.ones(4, 4).to(dtype)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    refused(model, f"mlp.up_proj.{suffix}", "quantized models are not supported")


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("base_model.model.model.", ["PEFT", "merge_and_unload"]),
        ("_orig_mod.model.", ["torch.compile"]),
        ("module.model.", ["DeepSpeed", "model.module"]),
        ("model.language_model.", ["multimodal"]),
        ("language_model.model.", ["multimodal"]),
        ("thinker.model.", ["multimodal"]),
        ("transformer.", ["rename them"]),
        ("", ["rename them", "AutoModelForCausalLM"]),
    ],
)
def test_tensors_under_a_prefix(model, prefix, words):
    tensors = load_file(model / "model.safetensors")
    renamed = {re.sub(r"^model\.", prefix, name): tensor for name, tensor in tensors.items()}
    save_file(renamed, model / "model.safetensors", metadata={"format": "pt"})
    refused(model, f"{prefix}embed_tokens.weight", "must be model.embed_tokens.weight", *words)


def test_adapters_of_peft(tmp_path, monkeypatch):
    """PEFT itself writes them: saved alone, saved unmerged, and next to complete weights."""
    monkeypatch.chdir(tmp_path)
    base = hf_model("qwen2-untied-4-4")
    base.save_pretrained("base")
    lora = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj"]))
    lora.peft_config["default"].base_model_name_or_path = "base"
    lora.save_pretrained("adapter")
    refused(Path("adapter"), "PEFT adapter", "(base)", "merge_and_unload")
    unmerged = {name: tensor.contiguous() for name, tensor in lora.state_dict().items()}
    (tmp_path / "unmerged").mkdir()
    save_file(unmerged, "unmerged/model.safetensors", metadata={"format": "pt"})
    (tmp_path / "unmerged/config.json").write_bytes((tmp_path / "base/config.json").read_bytes())
    refused(Path("unmerged"), "not merged", "merge_and_unload")
    for file in (tmp_path / "adapter").iterdir():
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    refused(Path("base"), "both weights and a PEFT adapter")


def test_our_own_adapter_names_the_merged_export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_hf(tmp_path / "run/hf")
    (tmp_path / "run/peft").mkdir()
    (tmp_path / "run/peft/adapter_config.json").write_text("{}")
    refused(Path("run/peft"), "give run/hf, where it is merged")


def test_a_pointer_of_git_lfs(model):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 988097824\n"
    (model / "model.safetensors").write_text(pointer)
    refused(model, "Git LFS", "git lfs pull")


@pytest.mark.parametrize("buffers", [["inv_freq"], ["cos_cached", "sin_cached"]])
def test_rotary_buffers_are_ignored(buffers, tmp_path):
    config = reduced("qwen2.5-0.5b")
    tensors = random_tensors(config, "bfloat16")
    stored = {
        f"model.layers.{layer}.self_attn.rotary_emb.{name}": torch.rand(1)
        for layer in range(2)
        for name in buffers
    }
    src = write_hf(tmp_path / "src", config, tensors | stored)
    from_hf(src, tmp_path / "orbax")
    to_hf(tmp_path / "orbax", tmp_path / "hf")
    plain = write_hf(tmp_path / "plain", config, tensors)
    assert read_bits(tmp_path / "hf") == read_bits(plain)


def test_mismatches_of_a_large_model_fit_in_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = reduced("qwen2.5-0.5b", layers=24)
    tensors = random_tensors(config, "bfloat16")
    write_hf(tmp_path / "model", config | {"num_hidden_layers": 30, "hidden_size": 56}, tensors)
    refused(Path("model"), "missing: model.layers.24.", "(72 in all)", "misshapen: ")
