"""What the compiler makes of every kernel: no spills, wide loads, async copies, tensor cores."""

import dataclasses

import pytest

pytest.importorskip("triton", reason="Triton has wheels for Linux only")

from jaxs1.config import UserError
from kernels.resources import SHARED_LIMIT, main, resident_programs, survey
from kernels.shapes import MODELS

pytestmark = pytest.mark.slow

PRODUCTS = {"qkv", "projection", "gate_up", "head"}
CORES = {80: "mma", 90: "wgmma", 100: "tcgen05"}


@pytest.mark.parametrize(
    ("model", "devices", "batch", "capability"),
    [
        ("qwen2.5-32b", 1, 1, 90),
        ("qwen2.5-32b", 1, 32, 90),
        ("qwen2.5-72b", 8, 64, 90),  # F / 8 = 3696 is no multiple of a tile
        ("qwen2.5-0.5b", 1, 3, 80),  # heads of 64, tied
        ("qwen3-4b", 1, 1, 100),
    ],
)
def test_machine_code(model, devices, batch, capability):
    shape = MODELS[model].split(devices)
    kernels = list(survey(shape, [batch], 32768, [capability]))
    assert {u.kernel for u in kernels} == PRODUCTS | {"attention", "combine", "sum"}
    for u in kernels:
        assert u.spills == 0, u
        assert 2 * u.shared <= SHARED_LIMIT[capability] or capability == 80, u  # two on a core
        assert u.shared <= SHARED_LIMIT[86], u  # fits into the smallest generation as well
        if u.kernel in PRODUCTS:
            assert u.wide_loads == u.loads, u
            assert u.async_copies > 16, u
            assert u.tensor_core.split()[0] == CORES[capability], u
        if u.kernel == "attention":
            # narrow loads: positions, page numbers, sums of squares; keys and values are wide
            assert u.async_copies >= 16 and u.wide_loads >= 24, u
            assert u.tensor_core.startswith("mma"), u


@pytest.mark.parametrize(
    ("model", "batch", "capability"),
    [("qwen2.5-32b", 1, 90), ("qwen2.5-32b", 32, 90), ("qwen2.5-32b", 1, 89), ("qwen3-4b", 1, 100)],
)
def test_machine_code_for_int8_weights(model, batch, capability):
    """As for bfloat16, with one or two narrow loads a program: those of the scales."""
    shape = dataclasses.replace(MODELS[model], weight_bytes=1)
    kernels = {u.kernel: u for u in survey(shape, [batch], 4096, [capability])}
    for u in (kernels[name] for name in PRODUCTS):
        assert u.spills == 0, u
        assert u.wide_loads >= 12 and u.loads - u.wide_loads <= 2, u
        assert u.async_copies == u.wide_loads, u
        assert u.tensor_core.split()[0] == CORES.get(capability, "mma"), u
        waves = u.programs / (132 * u.resident)
        assert waves <= 1 or u.kernel == "head" or capability != 90, u


def test_launches_of_the_32b_run_in_one_wave():
    """An H100 has 132 cores: all programs at once, where three a core were 1 % to 13 % too few."""
    found = list(survey(MODELS["qwen2.5-32b"], [1], 4096, [90]))
    programs = {"qkv": [448], "projection": [400, 400], "gate_up": [432], "head": [2376]}
    for kernel, numbers in programs.items():
        launches = [u for u in found if u.kernel == kernel]
        assert [u.programs for u in launches] == numbers
        for u in launches:
            waves = u.programs / (132 * u.resident)
            assert waves <= 1 or (kernel == "head" and waves == 6), u
    # at batch 32 tiles are larger: three programs a core, where four stages left room for two
    (wide,) = (u for u in survey(MODELS["qwen2.5-32b"], [32], 4096, [90]) if u.kernel == "gate_up")
    assert (wide.programs, wide.resident) == (432, 3)


def test_resident_programs_counted_by_hand():
    # sm_90 has 228 KiB and 65,536 registers: of 57 KiB less one reserved fit four, of 65 KiB three
    assert (
        resident_programs(56 << 10, 64, 4, 90) == 4 and resident_programs(64 << 10, 64, 4, 90) == 3
    )
    assert resident_programs(1 << 10, 104, 4, 90) == 65536 // (128 * 104) == 4
    assert resident_programs(1 << 10, 97, 4, 90) == 4  # 97 registers are handed out as 104
    assert (
        resident_programs(0, 8, 4, 90) == 16
        and resident_programs(0, 8, 4, 89) == 12
        and resident_programs(0, 8, 1, 89) == 24
    )


def test_command_prints_markdown_for_the_documents(capsys):
    main(["--batches", "[1]", "--capabilities", "[90]", "--markdown", "true"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| kernel | sm |") and len(lines) == 2 + 8
    assert all(line.count("|") == lines[0].count("|") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "qwen"], "model=qwen: must be one of qwen2.5-0.5b"),
        (["--batches", "[65]"], "batches=65: must be 1 to 64"),
        (["--capabilities", "[70]"], "capabilities=70: must be among"),
        (["--devices", "3"], "devices=3: heads=40: must be a multiple"),
        (["--context", "0"], "context=0: must be at least 1"),
    ],
)
def test_command_refuses_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        main(arguments)
    assert "\n" not in str(error.value)
