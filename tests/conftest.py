"""Shared by all tests: eight simulated CPU devices, large data sets, commands in new processes.

Compiling takes most of the tests' time. Programs are kept on disk: all tests, the commands that
they start, and the next run share them. XLA compiles with little optimization, except in
`make coverage` and with `JAXS1_TEST_XLA_FLAGS= make test`.
"""

import os
import tempfile

# before jax is imported; tests of one device name it
os.environ.setdefault(
    "JAXS1_TEST_XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0",
)
os.environ["XLA_FLAGS"] = " ".join(
    ["--xla_force_host_platform_device_count=8", os.environ["JAXS1_TEST_XLA_FLAGS"]]
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(tempfile.gettempdir(), f"jaxs1-test-programs-{os.getuid()}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# of commands, whose output is tested: a program that another test is just writing
os.environ.setdefault("PYTHONWARNINGS", "ignore:Error reading persistent compilation cache")

import gc
import subprocess
import sys
from pathlib import Path

import pytest

# traced programs are millions of objects that stay: looking through them takes a tenth of the time
gc.set_threshold(200_000, 20, 100)

ROOT = Path(__file__).parents[1]
#: XLA_FLAGS of commands, which see one device.
ONE_DEVICE = os.environ["JAXS1_TEST_XLA_FLAGS"]
#: Folder of public data sets that are too large for the repository; CONTRIBUTING.md lists them.
SHARED = Path(os.environ.get("JAXS1_TEST_DATA") or ROOT / "tests" / "not-given")


@pytest.fixture
def shared_data():
    """The folder that JAXS1_TEST_DATA names; tests that need it are skipped without."""
    if not SHARED.is_dir():
        pytest.skip("needs public data sets; set JAXS1_TEST_DATA to their folder")
    return SHARED


@pytest.fixture
def run_module():
    """Run `python -m MODULE ARGUMENTS` in the root of the repository, on one CPU device."""

    def run(*arguments, timeout=300, **environment):
        return subprocess.run(
            [sys.executable, "-m", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": ONE_DEVICE, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
