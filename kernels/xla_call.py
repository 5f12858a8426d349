"""Triton kernels inside `jax.jit`, through the typed FFI that CUDA graphs can capture.

Triton compiles a launch to PTX for a named compute capability, which needs no device; jaxlib's
`triton_kernel_call_ffi` loads and launches it. Usable under `shard_map`. (jax-triton's call is of
the older kind, which no CUDA graph captures.)

The private names of jaxlib and Triton that the project relies on are used in this file only.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from jaxs1 import devices
from kernels.launch import Array, Launch

#: [from, below): versions whose private interfaces were tested.
KNOWN = {"triton": ((3, 6), (3, 10)), "jax": ((0, 10), (0, 13)), "jaxlib": ((0, 10), (0, 13))}
#: Generations that kernels are compiled for: Ampere, Ada, Hopper, Blackwell.
CAPABILITIES = (80, 86, 89, 90, 100, 120)
#: PTX that ptxas of CUDA 12.8 and later reads; Triton's own default is newer than CUDA 13.0 knows.
PTX_VERSION = 87
#: XLA options of a program that runs as one CUDA graph, its loops' conditions too: no step of a
#: decoding loop waits for the host.
CUDA_GRAPH_OPTIONS: dict[str, str | bool] = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,WHILE",
    "xla_gpu_graph_min_graph_size": "1",
}
#: XLA options of a program that launches every kernel on its own.
NO_GRAPH_OPTIONS: dict[str, str | bool] = {"xla_gpu_enable_command_buffer": ""}
#: XLA's buffers start at multiples of at least this [bytes].
ALIGNMENT = 16
#: Pointers that Triton appends to a kernel's parameters, and jaxlib to a launch: scratch memory.
HIDDEN_PARAMETERS = 2

_TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "int8": "i8", "int32": "i32"}


def check_versions() -> None:
    """Raise ValueError if an installed version is not among those that were tested."""
    for package, (low, high) in KNOWN.items():
        installed = installed_version(package)
        numbers = tuple(int(x) for x in re.findall(r"\d+", installed)[:2])
        if not low <= numbers < high:
            wanted = f">={low[0]}.{low[1]},<{high[0]}.{high[1]}"
            raise ValueError(
                f"{package}={installed}: the Triton kernels need {wanted} (private interfaces were "
                f"tested with it); pip install '{package}{wanted}', or use the xla implementation"
            )


@functools.cache
def installed_version(package: str) -> str:
    """A package's version; cached, since tracing a large model needs it hundreds of times."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def compute_capability() -> int:
    """Compute capability of the default device, e.g. 90; ValueError if it is not an NVIDIA GPU."""
    device = jax.devices()[0]
    capability = devices.compute_capability(device)
    if capability is None:
        raise ValueError(
            f"device={device.platform}: Triton kernels run on NVIDIA GPUs; give "
            "compute_capability=90 to compile ahead of time for one"
        )
    return capability


def check_capability(capability: int) -> None:
    """Raise ValueError where kernels are not compiled for this generation of GPUs."""
    if capability not in CAPABILITIES:
        raise ValueError(
            f"compute_capability={capability}: must be one of {', '.join(map(str, CAPABILITIES))} "
            "(Ampere to Blackwell: the kernels use bfloat16 tensor cores); use the xla "
            "implementation"
        )


def compile_launch(launch: Launch, dtypes: Sequence[str | None], capability: int) -> Any:
    """Triton's compiled kernel: `.asm["ptx"]`, `.asm["cubin"]`, `.metadata`. Needs no GPU.

    Args:
        launch: what is compiled
        dtypes: dtypes of inputs, then outputs; None for an input that is absent
        capability: compute capability, e.g. 90 for sm_90
    """
    if not isinstance(launch.kernel, JITFunction):
        raise RuntimeError(
            f"{launch.name} was imported with TRITON_INTERPRET=1 and cannot be compiled; unset it"
        )
    constants = tuple(sorted(launch.constants.items()))
    return _compile(launch.kernel, tuple(dtypes), constants, launch.warps, capability)


@functools.cache
def _compile(
    kernel: Any,
    dtypes: tuple[str | None, ...],
    constants: tuple[tuple[str, Any], ...],
    warps: int,
    capability: int,
) -> Any:
    names = kernel.arg_names
    arrays = [name for name in names if name not in dict(constants)]
    if len(arrays) != len(dtypes):
        raise TypeError(f"{kernel.__name__} takes {arrays}, was given {len(dtypes)} arrays")
    given = dict(zip(arrays, dtypes, strict=True))
    signature, values, attributes = {}, dict(constants), {}
    for i, name in enumerate(names):
        dtype = given.get(name)
        signature[name] = "constexpr" if dtype is None else "*" + _TYPES[dtype]
        if dtype is None:
            values.setdefault(name, None)
        else:
            attributes[(i,)] = [["tt.divisibility", ALIGNMENT]]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in values.items()},
        attrs=attributes,
    )
    options = {"num_warps": warps, "ptx_version": PTX_VERSION, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@dataclass(frozen=True)
class Compiled:
    """Runs launches as part of the surrounding `jax.jit`.

    Args:
        capability: compute capability that the program is compiled for, e.g. 90
    """

    capability: int

    def __call__(self, launch: Launch, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        """Outputs of a launch; in-place outputs reuse their input's memory under `jit`."""
        present = [x for x in inputs if x is not None]
        position = {i: sum(x is not None for x in inputs[:i]) for i in launch.in_place}
        results = tuple(jax.ShapeDtypeStruct(s, jnp.dtype(d)) for s, d in launch.outputs)
        dtypes = [None if x is None else str(x.dtype) for x in inputs]
        compiled = compile_launch(launch, dtypes + [str(r.dtype) for r in results], self.capability)
        call = jax.ffi.ffi_call(
            "triton_kernel_call_ffi",
            results,
            input_output_aliases={position[i]: o for i, o in launch.in_place.items()},
        )
        grid = launch.grid + (1,) * (3 - len(launch.grid))
        arrays = len(present) + len(results)
        opaque = _call_descriptor(launch.name, grid, compiled, arrays, self.capability)
        return tuple(call(*present, opaque=opaque))


@functools.cache
def _call_descriptor(
    name: str, grid: tuple[int, ...], compiled: Any, arrays: int, capability: int
) -> bytes:
    """What the FFI target launches: PTX, grid and parameters, as jaxlib serialises them.

    Cached: the layers of a model launch the same few kernels, and compressing PTX takes time.
    """
    from jaxlib import gpu_triton

    check_versions()
    if not hasattr(gpu_triton, "TritonKernelCall"):
        raise ValueError(
            "jaxlib has no CUDA plugin: pip install 'jaxs1[cuda]', or use the xla implementation"
        )
    meta, ptx = compiled.metadata, compiled.asm["ptx"]
    parameters = len(re.findall(r"^\s*\.param ", ptx.split(".entry", 1)[1].split("{")[0], re.M))
    if parameters != arrays + HIDDEN_PARAMETERS or meta.global_scratch_size or meta.tensordesc_meta:
        raise ValueError(
            f"{name}: triton {triton.__version__} makes a kernel of {parameters} parameters "
            f"with {meta.global_scratch_size} B of scratch memory; jaxlib launches one of "
            f"{arrays + HIDDEN_PARAMETERS} without"
        )
    # jaxlib keeps the kernel's TTIR for debugging only; without it a descriptor is half as long
    ttir = ""
    kernel = gpu_triton.TritonKernel(
        meta.name, meta.num_warps, 1, meta.shared, ptx, ttir, capability
    )
    array = gpu_triton.create_array_parameter(0, ALIGNMENT)
    call = gpu_triton.TritonKernelCall(kernel, *grid, [array] * arrays)
    return zlib.compress(call.to_proto(name, b""))
