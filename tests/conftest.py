"""Shared by all tests: eight fake CPU devices, the shared data, commands in fresh processes."""

import os

# before jax is imported; tests of one device name it
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture
def shared_data():
    """Folder of real data; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED.parent.name}/{SHARED.name} beside the repository")
    return SHARED


@pytest.fixture
def run_module():
    """Run `python -m MODULE ARGUMENTS` from the repository's root, with one CPU device."""

    def run(*arguments, timeout=300, **environment):
        return subprocess.run(
            [sys.executable, "-m", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": "", **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
