"""The command as a whole: killed and resumed, stopped, refused, exported."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import transformers

from convert.mapping import parameters
from convert.weights import load_params, open_weights
from jaxs1.model import transformer
from jaxs1.tasks import puzzle_corpus
from tests.conftest import ONE_DEVICE, ROOT
from tests.numerics import assert_close
from tests.tiny_models import FLOAT32, one_device

pytestmark = pytest.mark.slow

STEPS = 24


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "data"
    puzzle_corpus.write_corpus(folder, base_documents=50, sft_examples=100)
    return folder


def command(corpus, output, *more):
    return [
        "jaxs1.train",
        *("--config", "configs/tiny.yaml"),
        *("--data.path", corpus / "sft.jsonl"),
        *("--tokenizer", corpus / "tokenizer"),
        *("--output", output),
        *("--steps", STEPS, "--checkpoint.every", 5, "--batch_size", 8, "--data.rows", 2),
        *more,
    ]


def metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


def all_params(run):
    weights = open_weights(str(run))
    model = transformer.abstract(weights.architecture, FLOAT32, one_device())
    return load_params(weights, model, np.float32)


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    process = start(command(corpus, run))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return run, out


def start(arguments):
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ONE_DEVICE, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process, step):
    """Read the log until a step was reported."""
    for line in process.stdout:
        if line.startswith(f"step {step}/"):
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize("kill_after", [4, 8, 17])
def test_killed_and_resumed_equals_uninterrupted_bitwise(
    kill_after, corpus, tmp_path, uninterrupted
):
    run = tmp_path / "killed"
    process = start(command(corpus, run))
    wait_for_step(process, kill_after)
    time.sleep(np.random.default_rng(kill_after).random() * 0.2)  # also in the middle of a save
    process.send_signal(signal.SIGKILL)
    process.communicate()  # closes its pipes
    resumed = start(command(corpus, run, "--resume", "auto"))
    out, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, err
    if kill_after > 8:
        assert re.search(r"resuming  after step (10|15)", out)
    whole, _ = uninterrupted
    assert metrics(run) == metrics(whole)
    assert [step for step, *_ in metrics(run)] == list(range(1, STEPS + 1))
    mine, theirs = all_params(run), all_params(whole)
    for a, b in zip(*map(_leaves, (mine, theirs)), strict=True):
        assert a.tobytes() == b.tobytes()
    shards = [(f / "hf" / "model.safetensors").read_bytes() for f in (run, whole)]
    assert shards[0] == shards[1]


def _leaves(tree):
    import jax

    return [np.asarray(x) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_a_checkpoint(number, corpus, tmp_path):
    run = tmp_path / "stopped"
    process = start(command(corpus, run, "--checkpoint.every", 0))
    wait_for_step(process, 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    assert number.name in out
    step = int(re.search(r"checkpoint at step (\d+) of 24", out)[1])
    assert "--resume auto" in out
    assert (run / "checkpoints" / str(step) / "params").is_dir()
    assert not (run / "hf").exists()


def test_export_declares_the_delimiters_of_its_thinking(uninterrupted):
    """In the export and in the run, which is a model as well; transformers reads the file."""
    run, _ = uninterrupted
    for folder in (run / "hf", run / "model"):
        content = json.loads((folder / "generation_config.json").read_text())
        assert content["jaxs1"] == {"preset": "s1"}
        transformers.GenerationConfig.from_pretrained(folder)


def test_export_equals_ours_and_generates(uninterrupted):
    run, out = uninterrupted
    assert f"exported to {run / 'hf'}" in out
    oracle = transformers.AutoModelForCausalLM.from_pretrained(run / "hf", dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "hf")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Make 1 from 7,4,6,2"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    weights = open_weights(str(run))
    model = transformer.abstract(weights.architecture, FLOAT32, one_device())
    model = transformer.with_parameters(model, load_params(weights, model, np.float32))
    n = ids.shape[1]
    hidden = model(ids.numpy(), np.arange(n)[None], np.ones((1, n), np.int32))
    with torch.no_grad():
        assert_close(model.logits(hidden), oracle(ids).logits.numpy(), "exported logits = ours")
    losses = [loss for _, loss, _ in metrics(run)]
    assert np.mean(losses[-4:]) < 0.75 * losses[0]
    assert parameters(weights.architecture)["embedding"][0] % 64 == 0


def test_used_output_is_refused_and_other_settings_are_named(corpus, uninterrupted, run_module):
    run, _ = uninterrupted
    again = run_module(*command(corpus, run))
    assert again.returncode == 2
    assert again.stderr.startswith(f"error: output={run}: already holds a run, up to step 24")
    other = run_module(*command(corpus, run, "--resume", "auto", "--optimizer.learning_rate", 1.0))
    assert other.returncode == 2
    assert "optimizer.learning_rate (0.003 then, 1.0 now)" in other.stderr
    assert "steps" not in other.stderr
    assert again.stderr.count("\n") == other.stderr.count("\n") == 1


def test_finished_run_resumes_to_nothing(corpus, uninterrupted, run_module):
    run, _ = uninterrupted
    before = (run / "metrics.jsonl").read_bytes()
    done = run_module(*command(corpus, run, "--resume", "auto"))
    assert done.returncode == 0, done.stderr
    assert (run / "metrics.jsonl").read_bytes() == before


def test_non_finite_loss_names_step_and_batch(corpus, tmp_path, run_module):
    run = tmp_path / "exploded"
    settings = {"optimizer.learning_rate": 1e20, "optimizer.max_grad_norm": "null"}
    more = [x for name, value in settings.items() for x in (f"--{name}", value)]
    done = run_module(*command(corpus, run, *more))
    assert done.returncode == 2
    assert re.match(r"error: step \d+: loss=\S+, gradient norm=\S+: must be finite", done.stderr)
    assert re.search(r"examples \d+, \d+", done.stderr)
    finite = [np.isfinite(loss) for _, loss, _ in metrics(run)]
    assert all(finite)
    kept = sorted(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit())
    assert all(step <= len(finite) for step in kept)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--data.block_size", 4096], ["data.block_size=4096", "max_position_embeddings=1024"]),
        (["--mesh.tensor", 3], ["mesh=", "tensor 3", "1 devices"]),
        (["--batch_size", 2, "--gradient_accumulation_steps", 4], ["batch_size=2", "at least"]),
        (["--model", "/nowhere"], ["/nowhere", "no such folder"]),
        (["--data.path", "nowhere.jsonl"], ["data.path=nowhere.jsonl", "no such file"]),
        (["--compute.attention", "cudnn"], ["compute.attention=cudnn", "NVIDIA"]),
        (["--data.overlong", "error", "--data.block_size", 30], ["data.block_size=30"]),
    ],
)
def test_impossible_combination_is_one_line(more, words, corpus, tmp_path, run_module):
    done = run_module(*command(corpus, tmp_path / "run", *more))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "hf").exists()
