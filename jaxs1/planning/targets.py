"""Accelerators that a run can be planned for, and targets such as h100:2x8."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from jaxs1 import devices
from jaxs1.config import UserError
from jaxs1.devices import Accelerator

#: Accelerators whose memory, speed and price are known.
ACCELERATORS = {n: a for n, a in devices.ACCELERATORS.items() if not math.isnan(a.memory)}


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
