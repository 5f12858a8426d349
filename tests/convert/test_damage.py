"""Damaged input ends in one line, and leaves nothing under the final name."""

import contextlib
import json
import shutil

import numpy as np
import pytest

from convert.from_hf import from_hf
from convert.to_hf import to_hf
from jaxs1.config import UserError
from tests.convert.checkpoints import make_hf, random_tensors, read_bits, reduced, write_hf

INDEX = "model.safetensors.index.json"


def pick(random, folder, pattern):
    files = sorted(folder.glob(pattern))
    return files[random.integers(len(files))]


def truncate(random, folder):
    file = pick(random, folder, "*.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[: random.integers(len(content))])


def flip_a_header_byte(random, folder):
    file = pick(random, folder, "*.safetensors")
    content = bytearray(file.read_bytes())
    length = 8 + int.from_bytes(content[:8], "little")
    content[random.integers(length)] ^= random.integers(1, 256)
    file.write_bytes(content)


def remove_a_shard(random, folder):
    pick(random, folder, "*.safetensors").unlink()


def confuse_the_index(random, folder):
    if not (folder / INDEX).exists():
        return flip_a_header_byte(random, folder)
    index = json.loads((folder / INDEX).read_text())
    places = index["weight_map"]
    names = sorted(places)
    name = names[random.integers(len(names))]
    other = sorted(set(places.values()) - {places[name]})
    match random.integers(5):
        case 0:
            places[name] = other[random.integers(len(other))]
        case 1:
            del places[name]
        case 2:
            places["model.layers.99.mlp.up_proj.weight"] = places[name]
        case 3:
            places[name] = "../" + places[name]
        case 4:
            text = (folder / INDEX).read_text()
            return (folder / INDEX).write_text(text[: random.integers(len(text) - 2)])
    return (folder / INDEX).write_text(json.dumps(index))


DAMAGES = [truncate, flip_a_header_byte, flip_a_header_byte, remove_a_shard, confuse_the_index]


@pytest.mark.parametrize("num_shards", [1, 3])
def test_damaged_hugging_face_folders(num_shards, tmp_path):
    src = make_hf(tmp_path / "src", num_shards=num_shards, dtype="float16")
    for seed in range(100):
        random = np.random.default_rng([num_shards, seed])
        folder = tmp_path / f"damaged-{seed}"
        shutil.copytree(src, folder)
        DAMAGES[seed % len(DAMAGES)](random, folder)
        for convert in (from_hf, to_hf) if seed < 10 else (from_hf,):
            with pytest.raises(UserError) as caught:
                convert(folder, tmp_path / "dst")
            assert "\n" not in str(caught.value)
            assert str(folder) in str(caught.value)
            assert not (tmp_path / "dst").exists()
        shutil.rmtree(folder)


def damage_ours(random, params):
    """Returns whether the damage may be one that changes nothing, such as zarr's fill value."""
    kind = random.integers(4)
    if kind == 0:
        pick(random, params, "*/*.*.*").unlink()
    elif kind == 1:
        file = pick(random, params, "*/[0-9]*")
        file.write_bytes(file.read_bytes()[:-1])
    elif kind == 2:
        shutil.rmtree(pick(random, params, "*/.zarray").parent)
    else:
        file = pick(random, params, "*/.zarray")
        content = bytearray(file.read_bytes())
        content[random.integers(len(content))] ^= random.integers(1, 256)
        file.write_bytes(content)
    return kind == 3


def test_damaged_checkpoints_of_ours(tmp_path):
    src = make_hf(tmp_path / "src", dtype="float32")
    from_hf(src, tmp_path / "ours")
    for seed in range(100):
        folder, dst = tmp_path / f"damaged-{seed}", tmp_path / f"dst-{seed}"
        shutil.copytree(tmp_path / "ours", folder)
        harmless = damage_ours(np.random.default_rng(seed), folder / "params")
        with (
            contextlib.suppress(UserError) if harmless else pytest.raises(UserError, match=r"^.*$")
        ):
            to_hf(folder, dst)
        assert not dst.exists() or read_bits(dst) == read_bits(src)
        shutil.rmtree(folder)


def test_missing_extra_and_misshapen_are_all_in_one_line(tmp_path):
    config = reduced("qwen2.5-0.5b")
    tensors = random_tensors(config, "bfloat16")
    del tensors["model.norm.weight"], tensors["model.layers.1.self_attn.q_proj.bias"]
    tensors["model.layers.0.extra.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].clone()
    tensors["model.layers.0.mlp.down_proj.weight"] = tensors["model.embed_tokens.weight"].clone()
    src = write_hf(tmp_path / "src", config, tensors)
    with pytest.raises(UserError) as caught:
        from_hf(src, tmp_path / "dst")
    text = str(caught.value)
    assert "missing: model.layers.1.self_attn.q_proj.bias, model.norm.weight" in text
    assert "extra: model.layers.0.extra.weight" in text
    assert "misshapen: model.layers.0.mlp.down_proj.weight is [61, 28], must be [28, 24]" in text
    assert "\n" not in text


@pytest.mark.parametrize("same", [True, False])
def test_tied_folder_with_a_head(same, tmp_path):
    config = reduced("qwen2.5-0.5b", tied=True)
    tensors = random_tensors(config, "bfloat16")
    head = tensors["model.embed_tokens.weight"].clone()
    if not same:
        head.view(-1).view(dtype=head.dtype)[5] += 1
    src = write_hf(tmp_path / "src", config, tensors | {"lm_head.weight": head})
    if same:
        from_hf(src, tmp_path / "dst")
        to_hf(tmp_path / "dst", tmp_path / "hf")
        expected = {k: v for k, v in read_bits(src).items() if k != "lm_head.weight"}
        assert read_bits(tmp_path / "hf") == expected
    else:
        with pytest.raises(UserError, match=r"lm_head\.weight differs"):
            from_hf(src, tmp_path / "dst")


def test_layers_of_different_dtypes_are_refused(tmp_path):
    config = reduced("qwen2.5-0.5b")
    tensors = random_tensors(config, "bfloat16")
    name = "model.layers.1.input_layernorm.weight"
    src = write_hf(tmp_path / "src", config, tensors | {name: tensors[name].float()})
    with pytest.raises(UserError, match=rf"{name} is float32, .* bfloat16"):
        from_hf(src, tmp_path / "dst")


def test_broken_config(tmp_path):
    src = make_hf(tmp_path / "src")
    for change in (
        {"rope_theta": "x"},
        {"hidden_size": 1.5},
        {"rope_scaling": 3},
        {"vocab_size": None},
    ):
        config = json.loads((src / "config.json").read_text()) | change
        folder = tmp_path / str(sorted(change))
        shutil.copytree(src, folder)
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError) as caught:
            from_hf(folder, tmp_path / "dst")
        assert "\n" not in str(caught.value)
