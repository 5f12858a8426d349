"""The command: what it prints and writes, and the one line that every mistake gets."""

import json

import pytest

from jaxs1 import plan
from jaxs1.config import UserError
from jaxs1.planning import topology
from jaxs1.planning.search import alternatives
from jaxs1.planning.targets import parse_target
from tests.planning.cases import plan_run, recipe, tiny_run

RECIPE = ["--config", "configs/s1_32b.yaml", "--architecture", "configs/models/tiny.json"]
SMALL = ["--data.row_multiple", "256", "--mean_length", "200", "--examples", "48", "--price", "2"]
MESH = [
    "--mesh.context",
    "2",
    "--data.rows",
    "4",
    "--changes",
    "0",
    "--length",
    "256",
    "--compute.loss_chunk",
    "64",
]


@pytest.mark.slow
def test_command_without_accelerator(run_module, tmp_path):
    """Tiny widths on eight CPU devices: everything but a time."""
    file = tmp_path / "plan.json"
    done = run_module("jaxs1.plan", *RECIPE, *SMALL, *MESH, "--target", "cpu:8", "--output", file)
    assert done.returncode == 0, done.stderr
    assert "steps     15 of 16 sequences in 4 rows" in done.stdout
    for word in ("parameters", "optimizer", "temporaries", "peak", "all-to-all"):
        assert word in done.stdout
    found = json.loads(file.read_text())
    assert (found["target"], found["devices"], found["rows"]) == ("cpu:8", 8, 4)
    assert found["mesh"] == {"data": 1, "fsdp": 4, "expert": 1, "context": 2, "tensor": 1}
    assert found["typical"]["peak"] > found["typical"]["parameters"] > 0
    assert found["run_seconds"] is None and found["changes"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "h1000:2x8"], ["target=h1000:2x8", "h100", "v5p"]),
        (["--target", "h100:2x8x2"], ["target=h100:2x8x2", "h100:NODESxGPUS"]),
        (["--target", "v5p:16"], ["target=v5p:16", "v5p:2x2x4"]),
        (["--target", "cpu:0"], ["target=cpu:0"]),
        (["--target", "cpu:8", "--price", "-1"], ["price=-1", "positive"]),
        (["--target", "cpu:8", "--rows", "3"], ["rows=3", "multiple of", "--rows 8"]),
        (["--target", "cpu:8", "--compute.rema", "full"], ["compute.rema", "compute.remat"]),
        (["--target", "cpu:8", "--mesh.context", "2", "--length", "999"], ["length=999", "2"]),
        ([], ["target"]),
    ],
)
def test_mistakes_are_one_line(arguments, words, monkeypatch):
    monkeypatch.setattr(plan, "use_only_cpu", lambda: None)
    arguments = (
        [*arguments, "--mesh.context", "1"] if "--mesh.context" not in arguments else arguments
    )
    with pytest.raises(UserError) as error:
        plan.main([*RECIPE, "--data.rows", "8", *arguments])
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize("target", ["h100:2x8", "v5p:2x2x4"])
def test_missing_compiler_is_named_with_the_command(target, monkeypatch):
    monkeypatch.setattr(topology, "_PLUGINS", {"gpu": "no_such_plugin", "tpu": "no_such_plugin"})
    with pytest.raises(UserError, match=r"no_such_plugin.*pip install 'jaxs1\[plan\]'"):
        topology.make_devices(parse_target(target))


def test_alternatives_are_sorted_and_differ_in_one_aspect():
    first = tiny_run(target="h100:1x8")
    found = alternatives(first, lambda config: run_of(first, config), aspects=1)
    assert len(found) >= 5
    times = [other.time().total for other in found]
    assert times == sorted(times) and times[0] < times[-1]
    for other in found:
        layout = (other.config.mesh, other.workload.rows) != (
            first.config.mesh,
            first.workload.rows,
        )
        remat = other.config.compute.remat != first.config.compute.remat
        gradient_accumulation_steps = (
            other.config.gradient_accumulation_steps != first.config.gradient_accumulation_steps
        )
        assert layout + remat + gradient_accumulation_steps == 1


def run_of(first, config):
    return plan_run("h100:1x8", config, architecture=first.model.architecture, mean=400, on="cpu:8")


def test_a_gpu_that_cannot_run_packed_cudnn_gets_xla():
    """cuDNN takes packed rows from Hopper on."""
    from jaxs1.model import ops

    assert ops.resolve_attention("auto", "gpu", "bfloat16", 80) == "xla"
    assert ops.resolve_attention("auto", "gpu", "bfloat16", 90) == "cudnn"
    with pytest.raises(UserError, match=r"Hopper or later.*gpu 8\.0"):
        ops.resolve_attention("cudnn", "gpu", "bfloat16", 80)


@pytest.mark.parametrize(
    ("name", "devices"),
    [("s1_32b", 16), ("s1_7b", 8), ("s1_7b_h200", 1), ("s1_72b", 32), ("s1_32b_v5p", 32),
     ("s1_32b_v6e", 64)],
)  # fmt: skip
def test_recipes_are_for_as_many_devices_as_they_say(name, devices):
    mesh = recipe(name).mesh
    assert mesh.data * mesh.fsdp * mesh.context * mesh.tensor == devices
