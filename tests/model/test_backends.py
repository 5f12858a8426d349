"""Which backend runs where, and what it asks of the program around it."""

import typing

import jax
import pytest

from jaxs1.config import UserError
from jaxs1.decoding.loading import EngineConfig
from jaxs1.model import backends
from jaxs1.model.architecture import Architecture
from jaxs1.model.backends import BACKENDS
from jaxs1.model.config import MeshConfig
from jaxs1.model.linear import LINEAR
from jaxs1.model.rope import Rope
from jaxs1.model.sharding import make_sharding_rules

ARCHITECTURE = Architecture(64, 32, 48, 2, 8, 4, 8, 256, Rope(1e4), 1e-6, False, True, True, 0.2)


def check(impl, devices=1, dtype="float32"):
    rules = make_sharding_rules(MeshConfig(fsdp=1, tensor=devices), jax.devices()[:devices])
    backends.check(impl, ARCHITECTURE, rules, dtype=dtype, sequences=4)


@pytest.mark.parametrize(
    ("impl", "devices", "dtype", "message"),
    [
        ("bf16x3", 2, "float32", "2 devices share the model"),
        ("bf16x3", 1, "bfloat16", "dtype=bfloat16: it computes in float32"),
        ("pallas", 1, "bfloat16", "device=cpu: .* runs on TPUs"),
        ("triton", 1, "bfloat16", "device=cpu: Triton kernels run on NVIDIA GPUs"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(impl, devices, dtype, message):
    with pytest.raises(UserError, match=rf"impl={impl}: cannot run here \({message}") as caught:
        check(impl, devices, dtype)
    assert str(caught.value).endswith("give --impl xla")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("impl", "devices"), [("xla", 4), ("bf16x3", 1), ("triton-interpreted", 2)]
)
def test_what_can_run_is_accepted(impl, devices):
    check(impl, devices)


def test_settings_name_every_backend():
    offered = typing.get_args(typing.get_type_hints(EngineConfig)["impl"])
    assert set(offered) == {"auto", *BACKENDS} - {"triton-interpreted"}
    assert {backend.linear for backend in BACKENDS.values()} <= set(LINEAR)


def test_only_triton_asks_for_one_cuda_graph():
    pytest.importorskip("triton")
    options = {impl: backend.compiler_options() for impl, backend in BACKENDS.items()}
    assert "WHILE" in str(options.pop("triton")["xla_gpu_enable_command_buffer"])
    assert not any(options.values())
