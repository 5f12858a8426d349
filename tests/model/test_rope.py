"""Scaled rotary embeddings equal transformers', below and beyond the context of pretraining."""

import json

import jax
import numpy as np
import pytest
import torch

from jaxs1.config import UserError
from jaxs1.model.architecture import Architecture, read_config
from jaxs1.model.rope import Llama3, Rope, Yarn
from tests.conftest import ROOT
from tests.numerics import assert_close
from tests.tiny_models import hf_model, ours

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SCALINGS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn, betas": YARN | {"beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
    "yarn, attention_factor": YARN | {"attention_factor": 0.7},
    "yarn, mscale": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
    "yarn, of the whole context": {"rope_type": "yarn", "factor": 4.0},
}
KEY = "original_max_position_embeddings"


def scaled_model(name, kind="llama-tied-9-3", theta=500.0):
    """A model whose slow axes turn within its context, so that scaling shows."""
    return hf_model(kind, rope_parameters=SCALINGS[name] | {"rope_theta": theta})


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "llama-tied-9-3") for name in SCALINGS), ("yarn", "qwen3_moe-untied-8-2")],
)
def test_logits_equal_transformers_beyond_the_context_of_pretraining(name, kind, tmp_path):
    oracle = scaled_model(name, kind)
    model = ours(oracle, tmp_path)
    tokens = np.random.default_rng(0).integers(0, 96, (1, 300))
    positions = np.arange(300)[None]
    with torch.no_grad():
        expected = oracle(torch.tensor(tokens)).logits.numpy()
    logits = jax.jit(lambda m, *x: m.logits(m(*x)))(
        model, tokens, positions, np.ones_like(positions, dtype=np.int32)
    )
    assert_close(logits, expected, "hidden and logits = transformers")
    plain = scaled_model("default", kind) if name not in ("default", "dynamic") else None
    if plain is not None:  # it is not the same without
        with torch.no_grad():
            other = plain(torch.tensor(tokens)).logits.numpy()
        assert np.abs(other - expected).max() > 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("name", SCALINGS)
def test_both_spellings_are_one(name, tmp_path):
    scaled_model(name).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    new = Architecture.from_hf(config, "new")
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    parameters["type"] = parameters.pop("rope_type")
    old = Architecture.from_hf(config | {"rope_scaling": parameters}, "old")
    assert old == new


def test_published_models():
    def rope(name):
        path = ROOT / "configs" / "models" / f"{name}.json"
        return Architecture.from_hf(read_config(path), name).rope

    assert rope("llama3.1-8b") == Rope(5e5, Llama3(8.0, 1.0, 4.0, 8192))
    assert rope("r1-distill-llama-8b") == rope("llama3.1-8b")
    assert rope("smollm2-135m") == Rope(1e5)
    config = read_config(ROOT / "configs" / "models" / "qwen2.5-7b.json")
    qwen = {"factor": 4.0, KEY: 32768, "type": "yarn"}  # as its model card says
    scaled = Architecture.from_hf(config | {"rope_scaling": qwen}, "qwen")
    assert scaled.rope == Rope(1e6, Yarn(4.0, 32768, pytest.approx(1.1386294)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_type": "longrope"}, "'longrope' is not supported; the supported are default, dyn"),
        ({"rope_type": 3}, "rope type 3 is not supported"),
        ({"rope_type": ["yarn"]}, "is not supported"),
        ({"rope_type": "mrope", "mrope_section": [16, 24, 24]}, "'mrope' is not supported"),
        ({"rope_type": "yarn", "rope_theta": 1}, "rope_theta must be between 1.01"),
        ({"factor": None}, "factor must be a number"),
        ({"factor": 0.5}, "factor must be between 1 and"),
        ({"factor": float("nan")}, "factor must be between 1 and"),
        ({"low_freq_factor": 4.0}, "low_freq_factor must be below high_freq_factor"),
        ({"high_freq_factor": "4"}, "high_freq_factor must be a number"),
        ({KEY: 0}, f"{KEY} must be a positive integer"),
        ({KEY: 1.5}, f"{KEY} must be a positive integer"),
        ({"rope_type": "yarn", "truncate": 1}, "truncate must be true or false"),
        ({"rope_type": "yarn", "beta_fast": -1}, "beta_fast must be between"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
    ],
)
def test_malformed_scalings_are_one_line(change, words):
    config = read_config(ROOT / "configs" / "models" / "llama3.1-8b.json")
    config["rope_scaling"] = LLAMA3 | change
    with pytest.raises(UserError, match=f"^config.json: rope_scaling=.*{words}") as caught:
        Architecture.from_hf(config, "config.json")
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)
