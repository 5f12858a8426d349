"""Planned runs for the tests of the planner."""

import functools

import jax
import pytest

from jaxs1.config import parse
from jaxs1.model.architecture import Architecture
from jaxs1.model.rope import Rope
from jaxs1.plan import find_architecture
from jaxs1.planning.planned_run import Sequences, make_planned_run
from jaxs1.planning.targets import parse_target
from jaxs1.planning.topology import is_installed, make_devices
from jaxs1.training.config import TrainConfig
from tests.conftest import ROOT

jax.devices()  # all eight of the tests, before a plan for cpu:1 makes it one
TINY = Architecture(512, 64, 192, 3, 8, 4, 8, 4096, Rope(1e4), 1e-6, False, True, False, 0.02)


def recipe(name, *arguments):
    """A recipe of configs/ with changes."""
    config = ["--config", str(ROOT / "configs" / f"{name}.yaml"), *arguments]
    return parse(TrainConfig, config, command="test")


def needs(platform):
    """Skip the calling test where programs for a platform cannot be compiled."""
    if not is_installed(platform):
        pytest.skip(f"needs the compiler for {platform}: make test, or the extra plan for tpu")


@functools.cache
def devices(target):
    return make_devices(parse_target(target))


def plan_run(target, config, *, architecture=None, mean=5500, length=None, on=None):
    """A planned run of the recipe's architecture. on: devices to use where nothing is compiled."""
    architecture = architecture or find_architecture(config.model, config.architecture)[0]
    sequences = Sequences(mean, 1000, length)
    return make_planned_run(
        config, architecture, parse_target(target), devices(on or target), sequences
    )


def tiny_run(*arguments, target="cpu:8", mean=400, length=None, architecture=TINY):
    """A tiny model in float32 on eight CPU devices, fsdp 2 x context 4."""
    config = recipe(
        "s1_32b", "--mesh.fsdp", "2", "--mesh.context", "4", "--compute.loss_chunk", "128",
        "--data.row_multiple", "512", "--data.block_size", "2048", *arguments,
    )  # fmt: skip
    return plan_run(target, config, architecture=architecture, mean=mean, length=length, on="cpu:8")
