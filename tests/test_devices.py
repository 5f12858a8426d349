"""One table of accelerators, by the names that JAX gives them."""

import math
from types import SimpleNamespace

import jax
import pytest

from jaxs1.devices import ACCELERATORS, compute_capability, peak_flops


def test_devices_are_told_apart_by_the_name_in_jax():
    kinds = [a.device_kind for a in ACCELERATORS.values()]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("name", [n for n, a in ACCELERATORS.items() if a.bandwidth > 0])
def test_figures_are_of_one_device_and_in_bytes(name):
    """Memory is read in 5 to 70 ms, and 100 to 1,500 FLOPs per byte keep the device busy."""
    a = ACCELERATORS[name]
    assert 0.005 < a.memory / a.bandwidth < 0.07
    assert 100 < a.flops / a.bandwidth < 1500
    assert a.interconnect_bandwidth < a.bandwidth
    assert 0 <= a.reserved_memory < 0.1 * a.memory
    assert (a.capability > (0, 0)) == (a.platform == "gpu") == (a.cores > 0)


def test_peak_of_known_and_unknown_devices():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("TPU v4") == 275e12
    assert peak_flops(jax.devices("cpu")[0].device_kind) is None
    assert peak_flops("abacus") is None


@pytest.mark.parametrize(
    ("version", "number"), [("9.0", 90), ("8.9", 89), ("12.0", 120), ("gfx942", None)]
)
def test_compute_capability(version, number):
    assert compute_capability(SimpleNamespace(compute_capability=version)) == number


def test_a_cpu_has_no_compute_capability():
    assert compute_capability(jax.devices("cpu")[0]) is None
    assert math.isnan(ACCELERATORS["cpu"].flops)
