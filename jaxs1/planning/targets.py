"""Accelerators that a run can be planned for, and targets such as h100:2x8."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from jaxs1.config import UserError


@dataclass(frozen=True)
class Accelerator:
    """One device.

    Args:
        platform: JAX's name of its kind
        device_kind: JAX's name of the model
        memory: bytes that XLA finds on it
        reserved_memory: bytes that the driver and the libraries take (CUDA, cuDNN, NCCL), not XLA
        flops: dense bf16 peak [FLOP/s], vendor's data sheet
        bandwidth: of the memory [B/s], vendor's data sheet
        interconnect_bandwidth: bandwidth that one device sees of collectives over all devices [B/s]
        price: of a device-hour [$], a round figure of 2025's on-demand prices
        capability: CUDA compute capability
        cores: multiprocessors
    """

    platform: Literal["gpu", "tpu", "cpu"]
    device_kind: str
    memory: float
    reserved_memory: float
    flops: float
    bandwidth: float
    interconnect_bandwidth: float
    price: float
    capability: tuple[int, int] = (0, 0)
    cores: int = 0


#: Bus of GPUs: NVLink inside a node and one 400 Gb/s adapter a GPU between nodes (A100: 200 Gb/s);
#: of TPUs: two thirds of the interconnect's links.
ACCELERATORS = {
    "h100": Accelerator(
        "gpu", "NVIDIA H100 80GB HBM3", 84.93e9, 3e9, 989e12, 3.35e12, 300e9, 3.0, (9, 0), 132
    ),
    "h200": Accelerator(
        "gpu", "NVIDIA H200", 150.75e9, 3e9, 989e12, 4.8e12, 300e9, 3.8, (9, 0), 132
    ),
    "a100": Accelerator(
        "gpu", "NVIDIA A100-SXM4-80GB", 84.97e9, 3e9, 312e12, 2.04e12, 180e9, 2.0, (8, 0), 108
    ),
    "rtx4090": Accelerator(
        "gpu", "NVIDIA GeForce RTX 4090", 25.26e9, 1e9, 165e12, 1.01e12, 20e9, 0.4, (8, 9), 128
    ),
    "v5p": Accelerator("tpu", "TPU v5", 102.8e9, 0, 459e12, 2.77e12, 400e9, 4.2),
    "v5e": Accelerator("tpu", "TPU v5 lite", 16.91e9, 0, 197e12, 0.82e12, 133e9, 1.2),
    "v6e": Accelerator("tpu", "TPU v6 lite", 33.54e9, 0, 918e12, 1.64e12, 300e9, 2.7),
    "cpu": Accelerator("cpu", "cpu", math.inf, 0, math.nan, math.nan, math.nan, 0),
}


@dataclass(frozen=True)
class Target:
    """Devices of one kind.

    Args:
        name: name in `ACCELERATORS`
        accelerator: properties of each device
        shape: (nodes, GPUs per node), or the topology of a TPU slice
    """

    name: str
    accelerator: Accelerator
    shape: tuple[int, ...]

    @property
    def devices(self) -> int:
        """Number of devices."""
        return math.prod(self.shape)

    @property
    def available(self) -> float:
        """Bytes of one device that a program may use."""
        return self.accelerator.memory - self.accelerator.reserved_memory

    def __str__(self) -> str:
        return f"{self.name}:{'x'.join(map(str, self.shape))}"


def parse_target(text: str) -> Target:
    """Read `NAME:SHAPE`, e.g. h100:2x8, v5p:2x2x4, cpu:8.

    Raises:
        UserError: the accelerator is unknown or the shape is malformed.
    """
    name, _, shape = text.partition(":")
    known = ", ".join(ACCELERATORS)
    if name not in ACCELERATORS:
        raise UserError(
            f"target={text}: must be NAME:SHAPE, where NAME is one of {known}; for example h100:2x8"
        )
    accelerator = ACCELERATORS[name]
    shape = shape or "1"
    sizes = tuple(map(int, shape.split("x"))) if re.fullmatch(r"\d+(x\d+)*", shape) else ()
    wanted, words = {
        "cpu": ((1,), "cpu:DEVICES, e.g. cpu:8"),
        "gpu": ((1, 2), f"{name}:NODESxGPUS, e.g. {name}:2x8"),
        "tpu": ((3,), "v5p:2x2x4") if name == "v5p" else ((2,), f"{name}:4x8"),
    }[accelerator.platform]
    if len(sizes) not in wanted or math.prod(sizes) < 1:
        raise UserError(f"target={text}: must have the form {words}")
    if accelerator.platform == "gpu" and len(sizes) == 1:
        sizes = (1, *sizes)
    return Target(name, accelerator, sizes)
