"""Facts about accelerators."""

from __future__ import annotations

import re

import jax


def compute_capability(device: jax.Device) -> int | None:
    """CUDA compute capability of a device, e.g. 90 for an H100; None if it is no NVIDIA GPU."""
    version = re.fullmatch(r"(\d+)\.(\d)", str(getattr(device, "compute_capability", "")))
    return None if version is None else int(version[1] + version[2])
