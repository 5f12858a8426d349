"""The time estimate against published runs, and how those are read."""

import dataclasses
import statistics

import pytest

from benchmarks import calibration
from benchmarks.calibration import RUNS, SHAPES
from jaxs1.planning import estimate


def test_maxtext_logs_both_figures():
    """TFLOP/s and tokens/s of the same log lines; the second is what the first is converted to."""
    logs = [
        ("Llama 2 7B", 4096, 503.384, 10922.973),
        ("Llama 2 70B", 4096, 460.480, 1035.970),
        ("Llama 3.1 8B", 8192, 413.433, 7138.890),
        ("Llama 3.1 70B", 8192, 506.597, 1052.266),
    ]
    for shapes, length, tflops, tokens in logs:
        found = tflops * 1e12 / calibration.maxtext_flops(SHAPES[shapes], length)
        assert found == pytest.approx(tokens, rel=1e-5)


def test_published_seconds():
    """Three of the sources state both the speed and the step's seconds."""
    by_hand = {("v6e", 8): 3.443, ("v6e", 32): 17.790, ("a3-mega", 256): 1.500}
    for run in RUNS:
        if expected := by_hand.get((run.source, run.devices)):
            assert run.published == pytest.approx(expected, abs=2e-3)


def test_assumptions_in_use_are_fitted_and_good():
    assert calibration.differences() == []
    errors = [abs(run.predict().total / run.published - 1) for run in RUNS]
    assert len(RUNS) >= 6 and statistics.median(errors) <= 0.15
    held_out = calibration.leave_one_out([run for run in RUNS if run.fitted])
    assert statistics.median(map(abs, held_out)) <= 0.15


def test_fit_finds_the_share_that_made_the_times():
    """Times predicted with known shares give these shares back."""
    shares = {"NVIDIA H100 80GB HBM3": 0.71, "TPU v5": 0.55}
    runs = [
        dataclasses.replace(run, seconds=run.predict(shares[run.kind.device_kind]).total)
        for run in RUNS
        if run.kind.device_kind in shares
    ]
    assert calibration.fit(runs) == shares


def test_replica_gradients_are_exchanged():
    """2,048 devices: all-gather and reduce-scatter among 128, all-reduce among 16, by hand."""
    (one, many) = (run.predict() for run in RUNS if run.source == "dgxc-3")
    weights = 2 * SHAPES["Llama 3.1 70B"].num_parameters
    assert one.communication == pytest.approx(3 * weights * 127 / 128 / 300e9)
    assert many.communication - one.communication == pytest.approx(
        2 * weights / 128 * 15 / 16 / 300e9
    )


def test_section_is_replaced_and_the_rest_kept():
    page = "# Plans\n\ntable\n\n## Calibration\n\nold\n\n## Other\n\nkept\n"
    replaced = calibration.replace_section(page, "## Calibration\n\nnew\n")
    assert "old" not in replaced and "kept" in replaced and replaced.count("## Calibration") == 1
    assert replaced.startswith("# Plans\n\ntable\n")


def test_document_is_the_one_that_the_command_writes():
    from tests.conftest import ROOT

    page = (ROOT / "docs" / "plans.md").read_text()
    assert calibration.section() in page
    assert all(f"{share:.0%}" in page for share in estimate.PRODUCTS.values())
