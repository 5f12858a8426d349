"""The printed page of a plan, from a made-up program of a tiny model."""

import re

import pytest

from jaxs1.planning import report
from jaxs1.planning.compile import TrainProgram
from jaxs1.planning.decode import DecodeProgram
from jaxs1.planning.hlo import Collective
from jaxs1.planning.targets import parse_target
from tests.planning.cases import TINY, tiny_run

PROGRAM = TrainProgram(
    parameters=20e9,
    optimizer=30e9,
    batch=0.1e9,
    temporaries=10e9,
    peak=60.1e9,
    products=3.2e14,
    collectives={"all-gather": Collective(12, 6e9), "all-to-all": Collective(8, 3e9)},
)


@pytest.fixture
def run():
    return tiny_run("--data.rows", "2", target="h100:1x8", length=512)


def test_page_of_a_run_that_fits(run, capsys):
    """Seconds by hand: 320 TFLOP at 64 % of 989 TFLOP/s, 9 GB at 300 GB/s, 65 % of it hidden."""
    outcome = report.Outcome(run, PROGRAM, None, price=3.0)
    report.print_run(run, "tiny.json")
    report.print_outcome(outcome)
    page = capsys.readouterr().out
    products, exposed = 320 / (0.64 * 989), 9 / 300 * 0.35
    seconds = products + exposed
    assert page == PAGE
    assert f"{seconds:.2f} s a step" in page and f"exposed communication {exposed:.2f}" in page
    minutes = outcome.step_seconds * 315 / 60
    assert outcome.step_seconds == pytest.approx(seconds, rel=1e-3)
    assert f"run       {minutes:.1f} min for 315 steps" in page
    assert f"${minutes / 60 * 8 * 3:,.2f} at $3.00" in page


PAGE = """\
model     213,824 parameters (tiny.json)
target    8 x NVIDIA H100 80GB HBM3: data 1, fsdp 2, expert 1, context 4, tensor 1
compute   attention cudnn, bfloat16; the backward pass recomputes all but attention
steps     315 of 16 sequences in 2 rows of 512 to 512 tokens, 512 on average, 100% filled
memory    GB on each device, rows of       512 tokens
          parameters                    20.0
          optimizer                     30.0
          batch                          0.1
          temporaries                   10.0
            of which gradients           0.0
            of which activations         0.0
          peak                          60.1
          of 81.9 (84.9 less 3.0 for the driver and libraries): fits, 27% to spare
exchange  GB that a device receives in a step: all-gather 6.0 (12x), all-to-all 3.0 (8x)
products  320 TFLOP a device and step, recomputed ones included
time      0.52 s a step (published runs: -25 % to +39 %): products 0.51, attention 0.00, \
elementwise 0.00, exposed communication 0.01 of 0.03
run       2.7 min for 315 steps, MFU 0%; 0.4 device-hours, $1.08 at $3.00 an hour (--price)
assumes   products at 64% and attention at 45% of 989 TFLOP/s, memory at 80% of 3.35 TB/s,
          collectives at 300 GB/s a device, 65% of them hidden;
          1,024 tokens a step in rows of a given length;
          loading, compiling and checkpoints are not counted
"""


def test_change_is_compared_with_the_recipe(run, capsys):
    first = report.Outcome(run, PROGRAM, None, price=3.0)
    larger = report.Outcome(run, TrainProgram(20e9, 30e9, 0.1e9, 40e9, 90.1e9, 6.4e14), None, 3.0)
    report.print_change(larger, first)
    page = capsys.readouterr().out
    assert re.search(r"change    --mesh.fsdp 2 --mesh.context 4 --data.rows 2 ", page)
    assert "DOES NOT FIT, 90.1 GB (+30.0) with rows of 512; 5.3 min (+96%)" in page
    assert report.verdict(larger).endswith("DOES NOT FIT, 10% too much")


def test_figures_as_json(run):
    outcome = report.Outcome(run, PROGRAM, None, price=3.0)
    found = report.to_json([outcome, outcome])
    assert found["spread"] == (-0.25, 0.39) and len(found["changes"]) == 1
    assert found["dollars"] == pytest.approx(found["device_hours"] * 3)
    assert found["seconds"]["exposed"] == pytest.approx(9 / 300 * 0.35)


def test_page_of_decoding(capsys):
    program = DecodeProgram(
        weights=65.5e9, cache=8.6e9, loading_peak=68.1e9, in_place=8.6e9, temporaries=1 << 20,
        copies=["bf16[8,64]"], copies_once=[], launches={"kCommandBuffer": 1},
        collectives={"all-reduce": Collective(4, 2e6)}, floor=0.02166,
    )  # fmt: skip
    target = parse_target("h100:1x1")
    report.print_decoding(program, TINY, "tiny.json", target, "triton, 8 sequences")
    assert capsys.readouterr().out == DECODING


DECODING = """\
model       213,824 parameters, tiny.json
target      h100:1x1: 1 x NVIDIA H100 80GB HBM3
loop        triton, 8 sequences between two synchronisations with the host
weights        65.50 GB on each device
KV cache        8.60 GB, 100% of it updated in place
temporaries     1.00 MiB
copies      1 of at least 1 MiB (1 x bf16[8,64]) in every step
            0 of at least 1 MiB in every call of the loop
launches    the loop is one CUDA graph; the host launches 1 kCommandBuffer for a call
all-reduce         4 x, 2.00 MB received by a device in a step
peak           74.10 GB while decoding
               68.10 GB loading peak: weights, a layer, a piece
fits        yes: 74.1 of 81.9 GB
floor          21.66 ms a step: time to read the weights and the full contexts once at the data \
sheet's bandwidth
"""
