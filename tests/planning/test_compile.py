"""The compiled step: exchanges to the byte on CPU devices, memory of the 32B on 16 H100.

Layers are scanned, so that all 64 compile as fast as two. The H100 tests need JAX's compiler for
NVIDIA GPUs and no GPU; `make test` brings it.
"""

import pytest

from tests.numerics import TOLERANCE
from tests.planning.cases import needs, plan_run, recipe, tiny_run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("remat", ["attention", "full"])
def test_state_and_exchanges_to_the_byte(remat):
    """A layer exchanges sequence for heads of q, k, v and back of its output, and no more.

    Backward: the output's gradient, the output again (for the weights' gradient) and the gradients
    of q, k, v; with full recomputation also q, k, v again. Left to the partitioner, the outputs
    kept of all layers moved at every layer.
    """
    tiny = tiny_run("--compute.remat", remat, "--compute.dtype", "float32", length=512)
    compiled, estimated = tiny.compile(512), tiny.memory(512)
    assert compiled.parameters == estimated.parameters
    assert compiled.optimizer == estimated.optimizer
    a, tokens = tiny.model.architecture, 2 * 512 // 8
    q, kv = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    widths = 2 * (2 * q + 2 * kv) + q + (q + 2 * kv if remat == "full" else 0)
    heads = tokens * widths * a.num_layers * 4 * 3 / 4
    embedding = 2 * tokens * a.hidden_size * 4 * 7 / 8
    assert compiled.collectives["all-to-all"].received == heads + embedding


S1 = ("--data.rows", "16", "--mesh.fsdp", "16", "--mesh.context", "1")
H100 = {  # arguments, row length -> peak [GB] recorded on 2026-11-22, and fits
    "recommended": (("--data.rows", "2"), 49152, 59.1, True),
    "recommended, longest row": (("--data.rows", "2"), 69632, 67.0, True),
    "s1's layout, all recomputed": (
        (*S1, "--compute.remat", "full"),
        32768, 67.4, True,
    ),
    "s1's layout, attention kept": (
        S1, 32768, 143.6, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", H100)
def test_32b_on_16_h100(name):
    needs("gpu")
    arguments, length, recorded, fits = H100[name]
    planned = plan_run("h100:2x8", recipe("s1_32b", *arguments), length=length)
    compiled = planned.compile(length)
    assert compiled.peak / 1e9 == pytest.approx(
        recorded, rel=TOLERANCE["compiled memory and bytes = recorded"]
    )
    assert (compiled.peak <= planned.target.available) == fits
    if fits:  # what does not fit is computed again by XLA's own choice
        assert planned.memory(length).total == pytest.approx(
            compiled.peak, rel=TOLERANCE["memory in closed form = compiled"]
        )


def test_recommended_recipe_of_the_32b():
    """<= 64 GB on each device and <= 16 minutes; weights are gathered twice, gradients once."""
    needs("gpu")
    planned = plan_run("h100:2x8", recipe("s1_32b"))
    compiled = planned.compile(planned.typical)
    assert planned.typical == 49152 and compiled.peak <= 64e9
    assert planned.time(compiled).total * planned.workload.steps <= 16 * 60
    received = {kind: c.received / 1e9 for kind, c in compiled.collectives.items()}
    expected = {"all-gather": 118.5, "reduce-scatter": 67.3, "all-to-all": 20.6}
    for kind, bytes_ in expected.items():
        assert received[kind] == pytest.approx(
            bytes_, rel=TOLERANCE["compiled memory and bytes = recorded"]
        )
    assert received["all-reduce"] < 0.1


def test_30b_a3b_on_8_h100():
    """Gradients of experts are not kept again in another layout: 14 GB, which do not fit."""
    needs("gpu")
    planned = plan_run("h100:1x8", recipe("s1_30b_a3b"), length=49152)
    compiled = planned.compile(49152)
    assert compiled.peak / 1e9 == pytest.approx(
        66.7, rel=TOLERANCE["compiled memory and bytes = recorded"]
    )
    assert planned.memory(49152).total == pytest.approx(
        compiled.peak, rel=TOLERANCE["memory in closed form = compiled"]
    )
