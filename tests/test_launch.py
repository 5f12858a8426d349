"""Launch files in a dry run: well-formed, and they start what the parser accepts."""

import subprocess

import pytest
import yaml

from jaxs1.config import parse
from jaxs1.rl.config import GrpoConfig
from jaxs1.serving.config import KEY_VARIABLE, ServeConfig
from jaxs1.training.config import TrainConfig
from tests.conftest import ROOT

LAUNCH = ROOT / "configs" / "launch"


def recipe(arguments):
    return parse(TrainConfig, arguments, command="test")


def test_every_launch_file_is_tested():
    training = {"slurm.sh", "slurm_grpo.sh", "gke_gpu.yaml", "gke_tpu.yaml"}
    assert {p.name for p in LAUNCH.iterdir()} == {*training, "serve_slurm.sh", "serve_gke.yaml"}


def started(script, given, folder, shown='"$@"'):
    """The words of the command that a script starts; a stand-in for srun prints them."""
    stub = folder / "srun"
    stub.write_text(f'#!/bin/bash\nprintf "%s\\n" {shown}\n')
    stub.chmod(0o755)
    done = subprocess.run(
        ["bash", LAUNCH / script, *given],
        cwd=ROOT,
        env={"PATH": f"{folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def sizes_of(script):
    """The options of a script for SLURM."""
    options = [x for x in (LAUNCH / script).read_text().splitlines() if x[:7] == "#SBATCH"]
    return dict(x.split()[1].removeprefix("--").split("=", 1) for x in options if "=" in x)


def test_slurm_starts_the_given_recipe_and_resumes(tmp_path):
    given = ["--config", "configs/s1_32b.yaml", "--data.fields", '{"question": "a prompt"}']
    words = started("slurm.sh", given, tmp_path)
    start = words.index("jaxs1.train")
    assert words[start - 3 : start] == ["python", "-u", "-m"]
    assert "--kill-on-bad-exit=1" in words[:start]
    config = recipe(words[start + 1 :])
    assert (config.output, config.resume) == ("runs/s1_32b", "auto")
    assert config.data.fields == {"question": "a prompt"}
    sizes = sizes_of("slurm.sh")
    assert sizes["ntasks-per-node"] == sizes["gpus-per-node"]  # JAX gives a task one GPU of its own
    assert int(sizes["nodes"]) * int(sizes["gpus-per-node"]) == devices(config)


def test_slurm_starts_grpo_with_all_devices_of_a_node(tmp_path):
    """One process per node, whose copy of the model spans its GPUs."""
    given = ["--config", "configs/grpo_32b.yaml", "--task", "a file.jsonl"]
    words = started("slurm_grpo.sh", given, tmp_path, '"$JAX_LOCAL_DEVICE_IDS" "$@"')
    start = words.index("jaxs1.grpo")
    config = parse(GrpoConfig, words[start + 1 :], command="test")
    assert (config.task, config.resume) == ("a file.jsonl", "auto")
    sizes = sizes_of("slurm_grpo.sh")
    assert sizes["ntasks-per-node"] == "1" and int(sizes["gpus-per-node"]) == config.tensor
    assert words[0] == ",".join(map(str, range(config.tensor)))
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


def test_slurm_starts_a_server_for_every_task(tmp_path):
    """A stand-in for srun runs the command as its fourth task would; one for Python prints it."""
    stub = tmp_path / "srun"
    stub.write_text('#!/bin/bash\nshift 2\nSLURM_LOCALID=3 exec "$@"\n')
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755), python.chmod(0o755)
    done = subprocess.run(
        ["bash", LAUNCH / "serve_slurm.sh", "--model", "a folder", "--drain", "100"],
        cwd=ROOT, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[:3] == ["-u", "-m", "jaxs1.serve"]
    config = parse(ServeConfig, words[3:], command="test")
    assert (config.host, config.port, config.model) == ("0.0.0.0", 8003, "a folder")


def test_gke_serves_where_the_probes_look():
    service, deployment = yaml.safe_load_all((LAUNCH / "serve_gke.yaml").read_text())
    pod = deployment["spec"]["template"]
    [container] = pod["spec"]["containers"]
    assert container["command"][-2:] == ["-m", "jaxs1.serve"]
    config = parse(ServeConfig, container["args"], command="test")
    assert config.host == "0.0.0.0" and config.names == ("s1",)
    assert service["spec"]["selector"] == pod["metadata"]["labels"]
    assert service["spec"]["ports"][0]["targetPort"] == config.port
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("readiness", "liveness")}
    assert probes["readiness"] == {"path": "/health", "port": config.port}
    assert probes["liveness"] == {"path": "/live", "port": config.port}
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["spec"]["terminationGracePeriodSeconds"] > config.drain + pause
    assert KEY_VARIABLE in {variable["name"] for variable in container["env"]}
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
