from types import SimpleNamespace

import jax
import pytest

from jaxs1.devices import compute_capability


@pytest.mark.parametrize(
    ("text", "capability"), [("9.0", 90), ("8.6", 86), ("12.0", 120), ("gfx942", None), ("", None)]
)
def test_compute_capability(text, capability):
    assert compute_capability(SimpleNamespace(compute_capability=text)) == capability


def test_a_cpu_has_none():
    assert compute_capability(jax.devices("cpu")[0]) is None
