"""Launch files in a dry run: well-formed, and they start what the parser accepts."""

import subprocess

import pytest
import yaml

from jaxs1.config import parse
from jaxs1.training.config import TrainConfig
from tests.conftest import ROOT

LAUNCH = ROOT / "configs" / "launch"


def recipe(arguments):
    return parse(TrainConfig, arguments, command="test")


def test_every_launch_file_is_tested():
    assert {p.name for p in LAUNCH.iterdir()} == {"slurm.sh", "gke_gpu.yaml", "gke_tpu.yaml"}


def test_slurm_starts_the_given_recipe_and_resumes(tmp_path):
    """A stand-in for srun prints the command it would start."""
    stub = tmp_path / "srun"
    stub.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    given = ["--config", "configs/s1_32b.yaml", "--data.fields", '{"question": "a prompt"}']
    done = subprocess.run(
        ["bash", LAUNCH / "slurm.sh", *given],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    start = words.index("jaxs1.train")
    assert words[start - 3 : start] == ["python", "-u", "-m"]
    assert "--kill-on-bad-exit=1" in words[:start]
    config = recipe(words[start + 1 :])
    assert (config.output, config.resume) == ("runs/s1_32b", "auto")
    assert config.data.fields == {"question": "a prompt"}
    options = [x for x in (LAUNCH / "slurm.sh").read_text().splitlines() if x[:7] == "#SBATCH"]
    sizes = dict(x.split()[1].removeprefix("--").split("=", 1) for x in options if "=" in x)
    assert sizes["ntasks-per-node"] == sizes["gpus-per-node"]  # JAX gives a task one GPU of its own
    assert int(sizes["nodes"]) * int(sizes["gpus-per-node"]) == devices(config)


def devices(config):
    mesh = config.mesh
    return mesh.data * mesh.fsdp * mesh.context * mesh.tensor


@pytest.mark.parametrize("name", ["gke_gpu", "gke_tpu"])
def test_gke_starts_as_many_processes_as_the_recipe_has_devices_for(name):
    service, job = yaml.safe_load_all((LAUNCH / f"{name}.yaml").read_text())
    title, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    assert service["kind"] == "Service" and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": title}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == volumes
    assert container["command"][-2:] == ["-m", "jaxs1.train"]

    last = spec["completions"] - 1
    arguments = [
        x.replace("$(JOB_COMPLETION_INDEX)", str(last)).replace(
            "/recipe/recipe.yaml", "configs/s1_32b.yaml"
        )
        for x in container["args"]
    ]
    config = recipe(arguments)
    assert config.resume == "auto" and config.output.startswith(mounts["runs"])
    [per_host] = container["resources"]["limits"].values()
    assert devices(config) == spec["completions"] * per_host
    assert config.data.rows % (config.mesh.data * config.mesh.fsdp) == 0
    if name == "gke_gpu":  # on TPU the processes are found by GKE's variables
        d = config.distributed
        assert d.coordinator.split(":")[0] == f"{title}-0.{pod['subdomain']}"
        assert (d.num_processes, d.process_id) == (spec["completions"], last)
