"""Facts about accelerators."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import jax


@dataclass(frozen=True)
class Accelerator:
    """Properties of one device; NaN is unknown.

    Args:
        platform: name of the platform in JAX
        device_kind: name of the device in JAX
        flops: dense bf16 peak, from the vendor's data sheet [FLOP/s]
        memory: memory that XLA reports [bytes]
        reserved_memory: memory taken by the driver and by CUDA, cuDNN and NCCL [bytes]
        bandwidth: memory bandwidth, from the vendor's data sheet [bytes/s]
        interconnect_bandwidth: bandwidth per device of collectives over all devices [bytes/s]
        price: price of a device-hour, rounded from the on-demand prices of 2025 [$]
        capability: CUDA compute capability
        cores: number of streaming multiprocessors
    """

    platform: Literal["gpu", "tpu", "cpu"]
    device_kind: str
    flops: float
    memory: float = math.nan
    reserved_memory: float = math.nan
    bandwidth: float = math.nan
    interconnect_bandwidth: float = math.nan
    price: float = math.nan
    capability: tuple[int, int] = (0, 0)
    cores: int = 0


#: Interconnect of GPUs: NVLink within a node and one 400 Gb/s adapter per GPU between nodes (A100:
#: 200 Gb/s); of TPUs: two thirds of the links' bandwidth.
ACCELERATORS = {
    "h100": Accelerator(
        "gpu", "NVIDIA H100 80GB HBM3", 989e12, 84.93e9, 3e9, 3.35e12, 300e9, 3.0, (9, 0), 132
    ),
    "h200": Accelerator(
        "gpu", "NVIDIA H200", 989e12, 150.75e9, 3e9, 4.8e12, 300e9, 3.8, (9, 0), 132
    ),
    "a100": Accelerator(
        "gpu", "NVIDIA A100-SXM4-80GB", 312e12, 84.97e9, 3e9, 2.04e12, 180e9, 2.0, (8, 0), 108
    ),
    "a100-40gb": Accelerator("gpu", "NVIDIA A100-SXM4-40GB", 312e12),
    "b200": Accelerator("gpu", "NVIDIA B200", 2250e12),
    "rtx4090": Accelerator(
        "gpu", "NVIDIA GeForce RTX 4090", 165e12, 25.26e9, 1e9, 1.01e12, 20e9, 0.4, (8, 9), 128
    ),
    "l40s": Accelerator(
        "gpu", "NVIDIA L40S", 362e12, 47.4e9, 1e9, 0.864e12, 20e9, 1.0, (8, 9), 142
    ),
    "v4": Accelerator("tpu", "TPU v4", 275e12),
    "v5p": Accelerator("tpu", "TPU v5", 459e12, 102.8e9, 0, 2.77e12, 400e9, 4.2),
    "v5e": Accelerator("tpu", "TPU v5 lite", 197e12, 16.91e9, 0, 0.82e12, 133e9, 1.2),
    "v6e": Accelerator("tpu", "TPU v6 lite", 918e12, 33.54e9, 0, 1.64e12, 300e9, 2.7),
    "cpu": Accelerator("cpu", "cpu", math.nan, math.inf, 0, price=0),
}


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 peak of a device, by its name in JAX [FLOP/s]; None if it is unknown."""
    known = {a.device_kind: a.flops for a in ACCELERATORS.values()}
    peak = known.get(device_kind, math.nan)
    return None if math.isnan(peak) else peak


def compute_capability(device: jax.Device) -> int | None:
    """CUDA compute capability of a device, e.g. 90 for an H100; None if it is no NVIDIA GPU."""
    version = re.fullmatch(r"(\d+)\.(\d)", str(getattr(device, "compute_capability", "")))
    return None if version is None else int(version[1] + version[2])
