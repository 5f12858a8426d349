"""Runs the tests of the folder interpreted/, each file in a process with TRITON_INTERPRET=1.

By hand: TRITON_INTERPRET=1 python -m pytest -n 0 tests/kernels/interpreted
"""

from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has wheels for Linux only")
FILES = sorted(Path(__file__).parent.glob("interpreted/test_*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_interpreted(file, run_module):
    done = run_module("pytest", "-n", 0, "--dist", "no", file, timeout=900, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
