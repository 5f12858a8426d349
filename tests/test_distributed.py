"""Several processes as one run: equal losses, resumed by any number, and none outlives another.

The processes here are real, on CPU with gloo. Four of them, a hung one, a lost main one and
adapters take minutes on two cores: JAXS1_MANY_PROCESSES=1 runs these too.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from convert.to_hf import to_hf
from jaxs1.config import UserError
from jaxs1.tasks import puzzle_corpus
from jaxs1.training import distributed
from jaxs1.training.config import DistributedConfig
from tests.conftest import ONE_DEVICE, ROOT
from tests.numerics import assert_close
from tests.test_train import command

large = pytest.mark.skipif(
    not os.environ.get("JAXS1_MANY_PROCESSES"), reason="minutes: JAXS1_MANY_PROCESSES=1 runs it"
)
STEPS = 4
#: One shape, so that each process compiles one step.
SETTINGS = {
    "batch_size": 8,
    "data.limit": 32,
    "steps": STEPS,
    "checkpoint.every": 2,
    "checkpoint.max_to_keep": 9,
    "data.rows": 2,
    "data.row_multiple": 512,
    "log.tensorboard": "false",
    "compute.loss_chunk": 512,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "data"
    puzzle_corpus.write_corpus(folder, base_documents=50, sft_examples=100)
    return folder


@pytest.fixture(scope="module")
def environment():
    """One CPU device."""
    return {**os.environ, "XLA_FLAGS": ONE_DEVICE}


@pytest.fixture
def launch(corpus, environment):
    """Start the processes of a run; those that are left at the end are killed."""
    started = []

    def launch(run, count, *, by="flags", devices=1, **settings):
        port = int(np.random.default_rng().integers(20000, 60000))
        options = [x for name, v in (SETTINGS | settings).items() for x in (f"--{name}", v)]
        group = []
        for i in range(count):
            found, variables = LAUNCHERS[by](i, count, port)
            fake = f"--xla_force_host_platform_device_count={devices} {ONE_DEVICE}"
            with open(run.with_suffix(f".{i}.log"), "w") as log:
                process = subprocess.Popen(
                    [sys.executable, "-um", *map(str, [*command(corpus, run), *options, *found])],
                    cwd=ROOT,
                    env={**environment, **variables, "XLA_FLAGS": fake},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            group.append(process)
        started.extend(group)
        return group

    yield launch
    for process in started:
        process.kill()
        process.wait()


def _flags(i, count, port):
    flags = {"coordinator": f"localhost:{port}", "num_processes": count, "process_id": i}
    return [x for name, v in flags.items() for x in (f"--distributed.{name}", v)], {}


def _slurm(i, count, port):
    return [], {
        "SLURM_JOB_ID": str(port),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(i),
        "SLURM_LOCALID": str(i),
    }


def _open_mpi(i, count, port):
    return [], {
        "OMPI_MCA_orte_hnp_uri": f"{port * 4096}.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": str(count),
        "OMPI_COMM_WORLD_RANK": str(i),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(i),
    }


LAUNCHERS = {"one": lambda *_: ([], {}), "flags": _flags, "slurm": _slurm, "open mpi": _open_mpi}


def finish(group, run, timeout=300):
    """Wait for all; returns what the main one printed."""
    statuses = [process.wait(timeout) for process in group]
    logs = [run.with_suffix(f".{i}.log").read_text() for i in range(len(group))]
    assert statuses == [0] * len(group), "\n".join(logs)
    quiet = [x for log in logs[1:] for x in log.splitlines() if "[Gloo]" not in x]
    assert not quiet  # the others print nothing
    return logs[0]


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return np.asarray([[line["loss"], line["grad_norm"]] for line in lines])


@pytest.fixture(scope="module")
def alone(corpus, environment, tmp_path_factory):
    """The run of one process with one device."""
    run = tmp_path_factory.mktemp("alone") / "run"
    options = [str(x) for name, v in SETTINGS.items() for x in (f"--{name}", v)]
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command(corpus, run)), *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return run


def export_is_the_checkpoint(run, tmp_path):
    """What the processes sent to the first one is what they saved, bit by bit."""
    to_hf(run, tmp_path / "hf", "float32")
    name = "hf/model.safetensors"
    assert (tmp_path / name).read_bytes() == (run / name).read_bytes()


def resume_in_the_middle(launch, run, copy, count, **settings):
    """A copy of a run without its last checkpoint and export, continued by `count` processes."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    shutil.rmtree(copy / "hf")
    by = "one" if count == 1 else "flags"
    out = finish(launch(copy, count, by=by, resume="auto", **settings), copy)
    assert "resuming  after step 2" in out
    assert_close(losses(copy), losses(run), "processes = one process, losses")


@pytest.mark.slow
def test_two_processes_train_as_one_and_one_resumes(launch, alone, tmp_path):
    run = tmp_path / "two"
    out = finish(launch(run, 2, by="slurm"), run)
    assert "processes 2, each with 1 devices" in out
    assert_close(losses(run), losses(alone), "processes = one process, losses")
    assert losses(run)[-1, 0] < losses(run)[0, 0]
    export_is_the_checkpoint(run, tmp_path)
    resume_in_the_middle(launch, run, tmp_path / "one", 1)


@large
@pytest.mark.slow
def test_four_processes_train_as_one_and_two_resume(launch, alone, tmp_path):
    run, mesh = tmp_path / "four", {"mesh.fsdp": 2, "mesh.context": 2, "mesh.tensor": 2}
    finish(launch(run, 4, by="open mpi", devices=2, **mesh), run)
    export_is_the_checkpoint(run, tmp_path)
    assert_close(losses(run), losses(alone), "processes = one process, losses")
    resume_in_the_middle(launch, run, tmp_path / "two", 2)


@large
@pytest.mark.slow
def test_adapters_in_two_processes_as_in_one(launch, alone, tmp_path):
    lora = {"model": alone / "hf", "lora.rank": 4, "lora.frozen_dtype": "float32"}
    one, two = tmp_path / "one", tmp_path / "two"
    finish(launch(one, 1, by="one", **lora), one)
    finish(launch(two, 2, **lora), two)
    assert_close(losses(two), losses(one), "processes = one process, losses")
    export_is_the_checkpoint(two, tmp_path)
    resume_in_the_middle(launch, two, tmp_path / "on", 2, **lora)


def lose(group, run, victim, number, step=2):
    """Send a signal to one process after some steps; the seconds until the others have ended."""
    log = run.with_suffix(".0.log")
    deadline = time.monotonic() + 240
    while f"step {step}/" not in log.read_text():
        assert time.monotonic() < deadline and group[0].poll() is None, log.read_text()
        time.sleep(0.1)
    group[victim].send_signal(number)
    sent = time.monotonic()
    for i, process in enumerate(group):
        if i != victim:
            assert process.wait(60) != 0
    return time.monotonic() - sent


FOREVER = {"steps": 100_000, "checkpoint.every": 0, "log.every": 2}


@pytest.mark.slow
def test_a_killed_process_ends_the_others(launch, tmp_path):
    run = tmp_path / "killed"
    group = launch(run, 2, **FOREVER)
    assert lose(group, run, victim=1, number=signal.SIGKILL) < 60
    last = run.with_suffix(".0.log").read_text().splitlines()[-1]
    assert re.match(r"error: process 0 of 2: another process was lost, so the run ends \(", last)
    assert "--resume auto" in last


@pytest.mark.slow
def test_an_error_of_the_user_is_one_line_in_each_process(launch, tmp_path):
    run = tmp_path / "wrong"
    group = launch(run, 2, **{"data.block_size": 4096})
    assert [process.wait(120) for process in group] == [2, 2]
    for i in range(2):
        lines = run.with_suffix(f".{i}.log").read_text().splitlines()
        [line] = [x for x in lines if "[Gloo]" not in x]
        assert line.startswith(f"error: process {i} of 2: data.block_size=4096: must be at most")


@large
@pytest.mark.slow
@pytest.mark.parametrize(("victim", "number"), [(0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_lost_first_and_a_hung_process_end_the_others(victim, number, launch, tmp_path):
    run = tmp_path / "lost"
    group = launch(run, 2, **FOREVER, **{"distributed.heartbeat_timeout": 20})
    assert lose(group, run, victim, number) < 60
    words = run.with_suffix(f".{1 - victim}.log").read_text()
    assert re.search("another process was lost|another task died", words), words


@large
@pytest.mark.slow
def test_a_signal_to_any_process_stops_all_after_the_same_step(launch, tmp_path):
    run = tmp_path / "stopped"
    group = launch(run, 2, **FOREVER)
    assert lose(group, run, victim=1, number=signal.SIGTERM) < 60
    assert [process.wait(60) for process in group] == [128 + signal.SIGTERM] * 2
    step = re.search(r"checkpoint at step (\d+) of", run.with_suffix(".0.log").read_text())[1]
    assert (run / "checkpoints" / step / "params").is_dir()


@pytest.mark.parametrize(
    ("cluster", "environment", "many"),
    [
        ("auto", {}, False),
        ("auto", {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_PROCID": "0"}, False),  # sbatch
        ("auto", {"SLURM_STEP_NUM_TASKS": "1"}, False),
        ("auto", {"SLURM_STEP_NUM_TASKS": "16"}, True),
        ("auto", {"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ("auto", {"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ("auto", {"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ("auto", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ("none", {"SLURM_STEP_NUM_TASKS": "16"}, False),
        ("jax", {}, True),
    ],
)
def test_which_launchers_are_seen(cluster, environment, many):
    assert distributed.finds_many(cluster, environment) is many


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"coordinator": "a:1"}, ["coordinator=a:1", "num_processes=None", "all three"]),
        ({"process_id": 0, "num_processes": 2}, ["coordinator=None", "all three"]),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, ["HOST:PORT"]),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, ["process_id=2", "0 to"]),
    ],
)
def test_flags_that_do_not_fit_together(given, words):
    with pytest.raises(UserError) as error, distributed.session(DistributedConfig(**given)):
        pass
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)
