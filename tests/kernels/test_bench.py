"""The benchmark's command and its output, as far as no kernel runs."""

import json

import pytest

pytest.importorskip("triton", reason="Triton has wheels for Linux only")

from rich.console import Console

from jaxs1.config import UserError
from kernels.bench import BenchResult, main, picture, table, write
from kernels.benchmarking.timing import Ceilings, samples

CEILINGS = Ceilings(copy=4.2e12, read=4e12, write=4e12, matmul=7e14, node=1e-6)
ROWS = [
    BenchResult("down", 1, 1024, 3e-3, True, 200_000_000, 400_000_000, 1e-4, 0.9e-4, 1.1e-4, 5e-5,
                1.3e-4),
    BenchResult("attention", 8, 4096, 3e-3, False, 10**8, 5 * 10**8, 5e-5, 4e-5, 6e-5, 2.5e-5,
                1e-4),
]  # fmt: skip


def test_without_a_gpu_one_line_says_what_can_be_done():
    with pytest.raises(UserError) as error:
        main([])
    message = str(error.value)
    assert message.startswith("device=cpu: timing needs an NVIDIA GPU") and "\n" not in message
    assert "--interpret true" in message and "--resources true" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernel", "[mlp]"], "kernel=mlp: must be among qkv, attention"),
        (["--model", "gpt2"], "model=gpt2: must be one of"),
        (["--batch", "[0]"], "batch=0: must be 1 to 64"),
        (["--context", "[0]"], r"context=\[0\]: must be at least 1"),
        (["--output", "x.txt"], r"output=x\.txt: must end with \.json"),
        (["--devices", "3"], "devices=3: heads=40"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UserError, match=message):
        main(arguments)


def test_table_picture_and_json(tmp_path):
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(ROWS, CEILINGS))
    text = console.export_text()
    # 200 MB in 100 us are 2000 GB/s, half of what can be read, 1.3 x as fast as XLA
    down = next(line for line in text.splitlines() if "down" in line)
    for cell in ("any", "100.0", "90.0-110.0", "50.0", "2000", "50%", "1.30 x"):
        assert cell in down
    assert "NO" in text  # not repeatable
    picture(ROWS, CEILINGS, "32b", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    write(tmp_path / "x.json", {"gpu": "none"}, ROWS, [])
    data = json.loads((tmp_path / "x.json").read_text())
    assert data["rows"][1]["batch"] == 8 and data["gpu"] == "none"


def test_samples_divide_by_the_number_of_calls(monkeypatch):
    ticks = iter([0, 2, 10, 14, 20, 26])
    monkeypatch.setattr("kernels.benchmarking.timing.time.perf_counter", lambda: next(ticks))
    times = samples(lambda: (), calls=2, number=3)
    assert (
        times.median == 2 and times.low == pytest.approx(1.2) and times.high == pytest.approx(2.8)
    )
