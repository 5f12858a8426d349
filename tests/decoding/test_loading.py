"""What `load_engine` refuses before any weight is read, and what `auto` stands for."""

import numpy as np
import pytest

from convert.weights import open_weights
from jaxs1.config import UserError
from jaxs1.decoding import loading
from jaxs1.decoding.loading import EngineConfig, ParallelConfig, load_engine, resolve_impl
from jaxs1.decoding.params import Request, SamplingParams, ThinkingParams
from tests.decoding.engines import HOT, LIMITS, complete_all, write_model
from tests.model.test_decode import rounded


@pytest.mark.parametrize(
    ("impl", "message"),
    [
        ("triton", "impl=triton: cannot run here .*Triton kernels run on NVIDIA GPUs"),
        ("pallas", "impl=pallas: cannot run here .*runs on TPUs"),
    ],
)
def test_an_implementation_for_other_devices(impl, message, tmp_path, monkeypatch):
    write_model(tmp_path)
    monkeypatch.setattr(loading, "load_decode_params", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(UserError, match=message) as error:
        load_engine(EngineConfig(str(tmp_path), impl=impl, limits=LIMITS))
    assert str(error.value).endswith("give --impl xla")


def test_auto_is_bf16x3_only_where_that_is_fast_and_exact(tmp_path, monkeypatch):
    """On a GPU auto is xla until a check made there is committed."""
    model = write_model(tmp_path / "float32")
    model.bfloat16().save_pretrained(tmp_path / "bfloat16")
    float32, bfloat16 = (open_weights(str(tmp_path / name)) for name in ("float32", "bfloat16"))
    monkeypatch.setattr(loading, "_multiplies_bfloat16", lambda: False)
    assert resolve_impl("auto", "float32", bfloat16, ParallelConfig()) == "xla"
    monkeypatch.setattr(loading, "_multiplies_bfloat16", lambda: True)
    assert resolve_impl("auto", "float32", bfloat16, ParallelConfig()) == "bf16x3"
    assert resolve_impl("auto", "float32", float32, ParallelConfig()) == "xla"
    assert resolve_impl("auto", "bfloat16", bfloat16, ParallelConfig()) == "xla"
    assert resolve_impl("auto", "float32", bfloat16, ParallelConfig(tensor=2)) == "xla"


def test_bf16x3_refuses_weights_that_it_would_round(tmp_path):
    write_model(tmp_path)
    with pytest.raises(UserError, match=r"impl=bf16x3: .* are float32; give --impl xla"):
        load_engine(EngineConfig(str(tmp_path), impl="bf16x3", limits=LIMITS))


@pytest.mark.slow
def test_bf16x3_decodes_the_tokens_of_float32(tmp_path):
    """Greedy and sampled; a batch and its first request alone."""
    write_model(tmp_path).bfloat16().save_pretrained(tmp_path)
    loaded = {
        impl: load_engine(EngineConfig(str(tmp_path), impl=impl, dtype="float32", limits=LIMITS))
        for impl in ("xla", "bf16x3")
    }
    rng = np.random.default_rng(0)
    thinking = ThinkingParams(max=20, min=8, max_answer_tokens=8)
    requests = [
        Request(rng.integers(0, 300, n).tolist(), thinking, sampling, seed=n)
        for n in (3, 11, 18)
        for sampling in (SamplingParams(), HOT)
    ]
    xla, bf16x3 = (complete_all(o.engine, requests) for o in loaded.values())
    assert [c[0].tokens for c in bf16x3] == [c[0].tokens for c in xla]
    alone = complete_all(loaded["bf16x3"].engine, requests[:1])
    assert alone[0][0].tokens == bf16x3[0][0].tokens
    assert "weights in bfloat16, bf16x3" in loaded["bf16x3"].description


def test_int8_needs_weights_that_are_stored_as_they_are(tmp_path):
    write_model(tmp_path).bfloat16().save_pretrained(tmp_path)
    config = EngineConfig(str(tmp_path), impl="bf16x3", weights="int8", limits=LIMITS)
    with pytest.raises(UserError, match=r"^weights=int8: impl=bf16x3 has .*; give --impl xla$"):
        load_engine(config)


@pytest.mark.slow
def test_int8_decodes_the_tokens_of_the_weights_that_it_stands_for(tmp_path):
    """Greedy and sampled, by budgets and Waits."""
    rounded(write_model(tmp_path), "int8").save_pretrained(tmp_path)
    loaded = {
        w: load_engine(EngineConfig(str(tmp_path), impl="xla", weights=w, limits=LIMITS))
        for w in ("auto", "int8")
    }
    assert "float32 with weights in int8, xla" in loaded["int8"].description
    assert loaded["auto"].fingerprint != loaded["int8"].fingerprint
    rng = np.random.default_rng(0)
    thinking = ThinkingParams(max=20, min=8, num_waits=1, max_answer_tokens=8)
    requests = [
        Request(rng.integers(0, 300, n).tolist(), thinking, sampling, seed=n)
        for n, sampling in ((3, SamplingParams()), (40, HOT), (70, SamplingParams()))
    ]
    tokens = {
        w: [c.tokens for (c,) in complete_all(found.engine, requests)]
        for w, found in loaded.items()
    }
    assert tokens["int8"] == tokens["auto"]
