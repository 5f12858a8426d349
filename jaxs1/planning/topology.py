"""Compile-only devices, from JAX's ahead-of-time topologies."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from unittest import mock

import jax
from jax.experimental import topologies

from jaxs1.config import UserError, one_line
from jaxs1.devices import Accelerator
from jaxs1.planning.targets import Target

#: Versions of cuDNN and CUDA to compile for: the oldest that jax[cuda13] installs.
CUDNN, CUDA = (9, 10), (13, 0)

_PLUGINS = {"gpu": "jax_plugins.xla_cuda13", "tpu": "libtpu"}


def use_only_cpu() -> None:
    """Keep JAX from using this machine's accelerators; call before any computation."""
    jax.config.update("jax_platforms", "cpu")


def is_installed(platform: str) -> bool:
    """Whether the compiler for a platform (cpu, gpu, tpu) is installed."""
    try:
        if platform in _PLUGINS:
            importlib.import_module(_PLUGINS[platform])
    except ImportError:
        return False
    return True


def make_devices(target: Target) -> list[jax.Device]:
    """Compile-only devices of a target; for a CPU, real ones.

    Raises:
        UserError: the compiler for the platform is not installed or does not know the topology.
    """
    accelerator = target.accelerator
    if accelerator.platform == "cpu":
        return _cpu_devices(target)
    if not is_installed(accelerator.platform):
        raise UserError(
            f"target={target}: needs the compiler {_PLUGINS[accelerator.platform]}, which is not "
            "installed; run pip install 'jaxs1[plan]' (no accelerator or driver needed)"
        )
    try:
        if accelerator.platform == "tpu":
            _tell_libtpu(target)
            # there is no default for a slice smaller than a host
            bounds = {"chips_per_host_bounds": (1, 1, 1)} if target.devices == 1 else {}
            return list(topologies.get_topology_desc(str(target), "tpu", **bounds).devices)
        nodes, devices = target.shape
        topology = topologies.get_topology_desc(
            platform="cuda",
            target_config=_gpu_proto(accelerator),
            topology=f"{nodes}x1x{devices}",
        )
        return list(topology.devices)
    except jax.errors.JaxRuntimeError as error:
        reason = one_line(error)
        raise UserError(
            f"target={target}: the compiler rejects this topology ({reason}); give another"
        ) from None


@contextlib.contextmanager
def tracing_for(target: Target) -> Iterator[None]:
    """Report the target's versions and capability to cuDNN's front end while a step is traced.

    It would otherwise ask the local driver, although tracing needs no device.
    """
    if target.accelerator.platform != "gpu":
        yield
        return
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    def of(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(".")))

    capability = target.accelerator.capability
    with mock.patch.multiple(
        cudnn,
        check_cudnn_version=lambda: CUDNN[0] * 10000 + CUDNN[1] * 100,
        check_compute_capability=lambda text: capability >= of(text),
        is_cuda_compute_capability_equal=lambda text: capability == of(text),
    ):
        yield


def _cpu_devices(target: Target) -> list[jax.Device]:
    with contextlib.suppress(RuntimeError):  # already initialised: use the devices there are
        jax.config.update("jax_num_cpu_devices", target.devices)
    devices = jax.devices("cpu")
    if len(devices) < target.devices:
        raise UserError(
            f"target={target}: this process has {len(devices)} CPU devices; give cpu:{len(devices)}"
        )
    return devices[: target.devices]


def _tell_libtpu(target: Target) -> None:
    """Set what libtpu would otherwise request from the cloud's metadata server, for minutes."""
    answers = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": f"{target.name}-{target.devices}",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling does not occupy a TPU
    }
    for name, value in answers.items():
        os.environ.setdefault(name, value)


def _gpu_proto(accelerator: Accelerator) -> str:
    """XLA's description of a GPU (stream_executor::GpuTargetConfigProto in text form).

    Without the versions of driver and runtime, XLA assumes 0 and disables CUDA graphs.
    """
    major, minor = accelerator.capability
    hopper = accelerator.capability >= (9, 0)
    shared = 233472 if hopper else 167936 if minor == 0 else 102400
    version = ".".join(map(str, (*CUDA, 0)))
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared - 1024}
  threads_per_core_limit: {1536 if minor == 9 else 2048}
  core_count: {accelerator.cores}
  fpus_per_core: {64 if (major, minor) == (8, 0) else 128}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {accelerator.bandwidth:.0f}
  l2_cache_size: {(50 if hopper else 40) << 20}
  clock_rate_ghz: 1.75
  device_memory_size: {accelerator.memory:.0f}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  driver_version: "{version}"
  kernel_mode_driver_version: "{version}"
  runtime_version: "{version}"
  compile_time_toolkit_version: "{version}"
  dnn_version: "{CUDNN[0]}.{CUDNN[1]}.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} }}
runtime_version {{ major: {CUDA[0]} minor: {CUDA[1]} }}
device_description_str: "{accelerator.device_kind}"
"""
