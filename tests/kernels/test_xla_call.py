"""From jax.jit to the FFI call; compiled for an H200 where the CUDA plugin is installed."""

import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("triton", reason="Triton has wheels for Linux only")

import jaxlib.gpu_triton

from kernels import decode, xla_call
from kernels.resources import abstract_layer
from kernels.shapes import MODELS

SHAPE = MODELS["qwen2.5-0.5b"]
CONSTANTS = {
    "eps": 1e-6,
    "rotation": functools.partial(decode.plain_rotation, **SHAPE.rope),
    "compute_capability": 90,
}
GOOD = {"batch": 1, "width": 896, "mlp": 4864, "heads": 14, "kv_heads": 2, "head_dim": 64}


class Descriptor:
    """Stands in for jaxlib's classes where the CUDA plugin is absent."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def to_proto(self, name, metadata):
        kernel, *grid, parameters = self.arguments
        assert len(grid) == 3 and all(n >= 1 for n in grid)
        assert ".entry" in kernel.arguments[4] and kernel.arguments[6] == 90
        return f"{name} {len(parameters)}".encode()


@pytest.fixture
def descriptors(monkeypatch):
    forget_traces()
    for name in ("TritonKernel", "TritonKernelCall"):
        monkeypatch.setattr(jaxlib.gpu_triton, name, Descriptor, raising=False)
    monkeypatch.setattr(
        jaxlib.gpu_triton,
        "create_array_parameter",
        lambda zero, align: (zero, align),
        raising=False,
    )
    yield
    forget_traces()


def forget_traces():
    """No stand-in's descriptor is left for another test, nor a real one for a stand-in."""
    xla_call._call_descriptor.cache_clear()
    jax.clear_caches()


def step(weights, scale, head, *rest):
    x, k_pages, v_pages = decode.layer(weights, *rest, **CONSTANTS)
    logits = decode.logits(x, scale, head, eps=1e-6, tied=True, compute_capability=90)
    return logits, k_pages, v_pages


def arguments(batch=2):
    weights, rest = abstract_layer(SHAPE, batch, 256)
    head = jax.ShapeDtypeStruct((SHAPE.vocabulary, SHAPE.width), jnp.bfloat16)
    return (weights, weights["attn_norm"]["scale"], head, *rest)


def test_a_layer_is_eight_calls_and_its_pages_stay_in_place(descriptors):
    text = jax.jit(step).lower(*arguments()).as_text()
    calls = re.findall(r"custom_call @triton_kernel_call_ffi\((.*?)\)(.*)", text)
    assert len(calls) == 9  # qkv, attention, join, 2 x (projection, sum), gate_up, head
    in_place = [rest for _, rest in calls if "output_operand_alias" in rest]
    assert len(in_place) == 1
    aliases = re.findall(r"output_tuple_indices = \[(\d)\],\s*operand_index = (\d+)", in_place[0])
    # no norms of q and k: inputs are partial, squares, 3 biases, cos, sin, position, table, pages
    assert aliases == [("2", "9"), ("3", "10")]
    assert "stablehlo.transpose" not in text and "stablehlo.concatenate" not in text


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs jax-cuda13-plugin"
)
def test_compiles_for_an_h200_that_is_not_here():
    from jax.experimental import topologies

    from tests.kernels.h200 import TARGET

    topology = topologies.get_topology_desc(platform="cuda", target_config=TARGET, topology="1x1x1")
    place = jax.sharding.SingleDeviceSharding(topology.devices[0])
    given = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), arguments()
    )
    compiled = jax.jit(step, donate_argnums=(5, 6)).lower(*given).compile()
    pages = 2 * given[5].size * 2
    assert compiled.memory_analysis().alias_size_in_bytes == pages
    assert not re.search(r"= .*\bcopy(-start)?\(", compiled.as_text())


def test_a_kernel_of_another_triton_is_refused(descriptors, monkeypatch):
    monkeypatch.setattr(xla_call, "HIDDEN_PARAMETERS", 1)
    with pytest.raises(ValueError, match=r"qkv_kernel: triton \S+ makes a kernel of 9 parameters"):
        jax.jit(lambda *a: step(*a)).lower(*arguments())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 65}, "batch=65: the Triton kernels take 1 to 64 sequences"),
        ({"batch": 0}, "batch=0: "),
        ({"head_dim": 80}, r"head_dim=80: the Triton kernels take \(64, 128\)"),
        ({"width": 900}, "width=900: must be a multiple of 8"),
        ({"mlp": 4}, "mlp=4: must be a multiple of 8"),
        ({"width": 904, "int8": True}, "width=904: must be a multiple of 16"),
        ({"heads": 15}, "heads=15: must be a multiple of kv_heads=2"),
        ({"heads": 34}, "heads=34: must be a multiple of kv_heads=2, at most 16 times"),
        ({"page": 48}, "page=48: must be a divisor of 256"),
        ({"dtype": "float16"}, "dtype=float16: the Triton kernels are compiled for bfloat16 only"),
        ({"compute_capability": 75}, "compute_capability=75: must be one of 80, 86"),
        ({"compute_capability": None}, "device=cpu: Triton kernels run on NVIDIA GPUs"),
    ],
)
def test_check_names_what_is_supported(change, message):
    decode.check(**GOOD, compute_capability=90)
    with pytest.raises(ValueError, match=message):
        decode.check(**{**GOOD, "compute_capability": 90, **change})


@pytest.mark.parametrize("package", ["triton", "jax", "jaxlib"])
def test_an_unknown_version_is_named(package, monkeypatch):
    real = xla_call.installed_version
    fake = {package: "99.1.0"}
    monkeypatch.setattr(xla_call, "installed_version", lambda p: fake.get(p) or real(p))
    with pytest.raises(ValueError, match=rf"{package}=99\.1\.0: the Triton kernels need >="):
        decode.check(**GOOD, compute_capability=90)


def test_float32_weights_are_refused_before_launch():
    weights, scale, head, x, *rest = arguments()
    x = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    with pytest.raises(ValueError, match="dtype=bfloat16 and float32"):
        jax.eval_shape(functools.partial(decode.layer, **CONSTANTS), weights, x, *rest)
    with pytest.raises(ValueError, match="hidden states: float32"):
        jax.eval_shape(
            functools.partial(decode.logits, eps=1e-6, tied=True, compute_capability=90),
            x, scale, head,
        )  # fmt: skip


def test_a_head_that_is_too_large_is_refused():
    arrays = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((1, 8192), (8192,), (8192, 2**18)))
    with pytest.raises(ValueError, match=r"head: bfloat16\[8192, 262144\].*less than 2\^31"):
        jax.eval_shape(
            functools.partial(decode.logits, eps=1e-6, tied=False, compute_capability=90), *arrays
        )


def test_interpreting_a_compiled_kernel_is_an_error():
    import torch

    from kernels.interpreted import on_torch
    from kernels.projection import projection

    with pytest.raises(RuntimeError, match="set TRITON_INTERPRET=1 in the environment before"):
        projection(on_torch, torch.zeros(1, 64), torch.zeros(64, 64), torch.zeros(1, 64))
