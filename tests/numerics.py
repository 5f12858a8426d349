"""The only table of tolerances. They are relative and never loosened to make a test pass."""

import jax
import numpy as np

#: float32 unless said otherwise; the issue that a figure comes from is the project's contract.
TOLERANCE = {
    "hidden and logits = transformers": 2e-5,
    "SFT losses = torch loop, 20 steps": 1e-4,
    "packed = unpacked": 1e-6,
    "mesh = one device, losses of 5 steps": 1e-5,
    "exported logits = ours": 1e-4,
    "LoRA: merged = adapter = PEFT": 1e-5,
    "processes = one process, losses": 1e-5,
    "operator = plain formula": 1e-5,
    "kernel = plain formula": 1e-5,
    "bf16x3 product = float64": 1e-6,
    "chunked = whole cross-entropy": 2e-6,
    "compiled memory and bytes = recorded": 3e-2,
    "memory in closed form = compiled": 0.1,
    "prefill + decode = whole forward": 1e-5,
    "sampled log-probability = whole forward, absolute": 1e-4,
}


def relative_error(actual, expected):
    """Largest difference over the largest magnitude, over all leaves of a tree."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    assert all(a.shape == b.shape for a, b in pairs)
    largest = max(np.abs(b).max() for _, b in pairs)
    return max(np.abs(a - b).max() for a, b in pairs) / largest


def assert_close(actual, expected, what):
    """Assert that the relative error is within the table's tolerance for `what`."""
    error = relative_error(actual, expected)
    assert error <= TOLERANCE[what], f"{what}: relative error {error:.2e} > {TOLERANCE[what]:.0e}"
