"""Outputs that cannot be written: one line, before a model is loaded; a full disk keeps what is
complete."""

import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest

from convert import from_hf, to_hf
from jaxs1 import demo, generate, plan
from jaxs1.config import UserError
from jaxs1.storage import check_output, write_text
from jaxs1.tasks import puzzle_corpus
from tests.conftest import ONE_DEVICE, ROOT
from tests.curation.pools import planted_pool, write_jsonl
from tests.decoding.engines import encode, write_model
from tests.evaluation.fake import Engine, config, evaluate, sums
from tests.test_generate import run as run_generate
from tests.test_train import command as train_command

# jaxs1's attributes of these names are functions
evaluate_module, train_module, curate_module, traces_module = (
    import_module(f"jaxs1.{name}") for name in ("evaluate", "train", "curate", "traces")
)
#: No command may get as far as this model.
MODEL = ("--model", "no such model")


def commands(tmp_path):
    """For each command with a folder as output, a function of that folder."""
    task = ("--task", str(sums(tmp_path / "sums.jsonl", 2)))
    pool = write_jsonl(tmp_path / "pool.jsonl", planted_pool(40)[0])
    data = ("--data.path", str(pool))
    curated = ("--input", str(pool), "--recipe", "all", "--stages.decontamination", "false")
    return {
        "train": lambda out: train_module.main([*MODEL, *data, "--output", out]),
        "evaluate": lambda out: evaluate_module.main([*MODEL, *task, "--output", out]),
        "curate": lambda out: curate_module.main([*curated, "--output", out]),
        "traces": lambda out: traces_module.main(
            ["--questions", str(pool), *MODEL, "--output", out]
        ),
        "from_hf": lambda out: from_hf.main(["no such model", out]),
        "to_hf": lambda out: to_hf.main(["no such model", out]),
        "demo": lambda out: demo.main(["--output", out]),
        "corpus": lambda out: puzzle_corpus.write_corpus(out, base_documents=1, sft_examples=1),
    }


NAMES = ["train", "evaluate", "curate", "traces", "from_hf", "to_hf", "demo", "corpus"]
FILES = {
    "generate": lambda out: generate.main([*MODEL, "--prompt", "a", "--output", out]),
    "plan": lambda out: plan.main(["--target", "cpu:1", "--config", "s1_32b", "--output", out]),
    "plan --decode": lambda out: plan.main(["--decode", "--target", "cpu:1", "--output", out]),
}


def refused(run, out, words):
    with pytest.raises(UserError, match=words) as caught:
        run(str(out))
    assert "\n" not in str(caught.value) and str(out) in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_cannot_be_created(name, tmp_path):
    run = commands(tmp_path)[name]
    (tmp_path / "file").write_text("precious")
    before = sorted(tmp_path.iterdir())
    refused(run, tmp_path / "file", "Not a directory|exists already|File exists")
    refused(run, tmp_path / "file" / "deep" / "out", "Not a directory")
    refused(run, "/proc/nowhere/out", "No such file")
    assert (tmp_path / "file").read_text() == "precious"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_created(name, tmp_path):
    run = FILES[name]
    (tmp_path / "file").write_text("precious")
    refused(run, tmp_path, "exists|Is a directory")
    refused(run, tmp_path / "missing" / "out", "No such file or directory")
    refused(run, tmp_path / "file" / "out", "Not a directory")
    refused(run, "/proc/out", "No such file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write everywhere")
    for out, folder in ((tmp_path / "out", False), (tmp_path / "a" / "out", True)):
        with pytest.raises(UserError, match=r"output=\S+: cannot be written \(.*denied\); check"):
            check_output(out, folder=folder)


def test_a_full_disk_is_known_before(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "write", full)
    for folder in (True, False):
        with pytest.raises(UserError, match=r"out: cannot be written \(.*No space left on device"):
            check_output(tmp_path / "out", folder=folder)
    assert not list(tmp_path.iterdir())


def test_what_can_be_written_is_left_as_it_was(tmp_path):
    (tmp_path / "file").write_text("precious")
    check_output(tmp_path / "file")
    check_output(tmp_path / "new")
    check_output(tmp_path, folder=True)
    check_output(tmp_path / "a" / "b", folder=True, new=True)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "precious"


def test_devices_are_written_and_not_replaced():
    with pytest.raises(UserError, match=r"/dev/full: cannot be written \(No space left on device"):
        write_text(Path("/dev/full"), "a")
    assert not os.path.exists("/dev/full.partial")


@pytest.mark.parametrize("script", ["print('a' * 10)", "print('a' * 10**6)"])
def test_a_full_disk_behind_stdout_is_one_line(script):
    code = f"from jaxs1.config import run_command; run_command(lambda _: {script})"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1


@contextmanager
def files_limited_to(size):
    """As on a full disk: files of this process cannot grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_generate_keeps_what_was_complete(tmp_path):
    likes = {"<|im_start|>": 3.0, "<|im_end|>": 2.0}
    write_model(tmp_path / "model", {encode(t)[0]: amount for t, amount in likes.items()})
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"What is {i}?"} for i in range(4)])
    short = ("--thinking.max=6", "--thinking.max_answer_tokens=5", "--thinking.min_answer_tokens=1")

    def run(name):
        output = tmp_path / name
        run_generate(tmp_path / "model", "--prompts", prompts, "--output", output, *short)

    run("whole.jsonl")  # everything is compiled now
    whole = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    size = len(whole[0]) + len(whole[1])
    with files_limited_to(size + 20), pytest.raises(UserError, match=r"part.jsonl: .*too large"):
        run("part.jsonl")
    assert (tmp_path / "part.jsonl").read_bytes() == b"".join(whole[:2])


def test_evaluate_keeps_what_was_complete(tmp_path):
    task = sums(tmp_path / "sums.jsonl", 6)

    def run(name):
        return evaluate(config("--task", task, "--output", tmp_path / name), Engine())

    whole = run("whole")
    lines = (tmp_path / "whole" / "samples.jsonl").read_bytes().splitlines(keepends=True)
    size = max(sum(map(len, lines[:3])), (tmp_path / "whole" / "settings.json").stat().st_size)
    with files_limited_to(size + 20), pytest.raises(UserError, match="too large") as caught:
        run("part")
    assert "\n" not in str(caught.value)
    kept = (tmp_path / "part" / "samples.jsonl").read_text()
    assert kept.endswith("\n") and 0 < kept.count("\n") < 6
    assert all(map(json.loads, kept.splitlines()))
    assert not (tmp_path / "part" / "results.json").exists()
    again = run("part")  # there is room again
    assert again.points == whole.points


@pytest.mark.parametrize("name", ["results.json", "results.md", "scaling.png"])
def test_evaluate_on_a_disk_that_is_full_at_the_end(name, tmp_path, monkeypatch):
    task = sums(tmp_path / "sums.jsonl", 4)
    out = tmp_path / "out"
    (out / f"{name}.partial" if name != "scaling.png" else out / name).mkdir(parents=True)
    settings = ("--task", task, "--output", tmp_path / "whole", "--sweep.budget", "[10,30]")
    evaluate(config(*settings), Engine())
    for file in ("settings.json", "samples.jsonl"):
        (out / file).write_bytes((tmp_path / "whole" / file).read_bytes())
    with pytest.raises(UserError, match=r"cannot be written \(.*Is a directory"):
        evaluate(config(*settings, "--output", out), Engine())


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [500, 20_000, 300_000])
def test_train_ends_with_one_line(size, tmp_path):
    """The settings, the tensors of a checkpoint or those of the export do not fit."""
    puzzle_corpus.write_corpus(tmp_path / "data", base_documents=50, sft_examples=100)
    arguments = train_command(tmp_path / "data", tmp_path / "run")
    # what writes files of its own: the measurement of coverage, the folder of compiled programs
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    environment |= {"XLA_FLAGS": ONE_DEVICE, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(size), *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    assert "cannot be written (File too large)" in done.stderr
    assert done.stderr.count("\n") == 1
