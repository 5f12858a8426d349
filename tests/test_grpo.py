"""The command as a whole: it learns, resumes bit by bit, exports, and refuses what cannot be."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import transformers

from convert.weights import load_params, open_weights
from jaxs1.config import UserError, parse
from jaxs1.grpo import main, prepare
from jaxs1.model import transformer
from jaxs1.rl.config import GrpoConfig
from tests.conftest import ONE_DEVICE, ROOT
from tests.decoding.engines import encode, write_model
from tests.numerics import TOLERANCE
from tests.tiny_models import FLOAT32, one_device

pytestmark = pytest.mark.slow

RIGHT = "4"
STEPS = 6


@pytest.fixture(scope="module")
def bandit(tmp_path_factory):
    """A model that answers with one of six digits, and questions of which "4" is right."""
    folder = tmp_path_factory.mktemp("bandit")
    digits = {encode(digit)[0]: 6.0 for digit in "123456"}
    write_model(folder / "model", {**digits, encode("<|im_start|>")[0]: 5.0}, context=128)
    rows = [{"question": f"Which? {i}", "answer": RIGHT} for i in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def arguments(bandit, output, **more):
    settings = {
        "model": bandit / "model", "task": bandit / "rows.jsonl", "data.kind": "integer",
        "output": output, "steps": STEPS, "prompts": 4, "group": 8, "rows": 4,
        "budgets.values": "[1,4]", "thinking.answer_prefix": "\nFinal Answer:",
        "thinking.max_answer_tokens": 1, "thinking.min_answer_tokens": 1, "thinking.num_waits": 1,
        "optimizer.learning_rate": 3e-3, "optimizer.min_lr_ratio": 1.0, "export_dtype": "float32",
        "limits.max_num_seqs": 32, "limits.decode_steps": 8, "compute.dtype": "float32",
        "compute.remat": "none", "checkpoint.every": 2, "log.tensorboard": "false",
        "mesh.fsdp": 1,
    }  # fmt: skip
    settings |= {name.replace("__", "."): value for name, value in more.items()}
    return [str(x) for name, value in settings.items() for x in (f"--{name}", value)]


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(path):
    return [
        {k: v for k, v in row.items() if not k.endswith(("_s", "seconds", "compiled"))}
        for row in rows(path)
    ]


def params_of(run):
    weights = open_weights(str(run))
    model = transformer.abstract(weights.architecture, FLOAT32, one_device())
    return [np.asarray(x) for x in jax.tree.leaves(load_params(weights, model, np.float32))]


def start(arguments):
    """The command on one device."""
    return subprocess.Popen(
        [sys.executable, "-m", "jaxs1.grpo", *arguments],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ONE_DEVICE, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def held_out(bandit):
    task = bandit / "rows.jsonl"
    return {"held_out.every": 3, "held_out.task": task, "held_out.budgets": "[0,4]",
            "held_out.limit": 5}  # fmt: skip


@pytest.fixture(scope="module")
def finished(bandit, tmp_path_factory):
    """A run of six steps with a held-out evaluation, and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    process = start(arguments(bandit, run, **held_out(bandit)))
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return run, out


def test_metrics_say_what_happened(finished):
    run, out = finished
    found = rows(run / "metrics.jsonl")
    assert [row["step"] for row in found] == [*range(1, STEPS + 1)]
    for row in found:
        shares = [row[x] for x in ("right", "wrong", "no_answer")]
        assert sum(shares) == pytest.approx(1) and row["right"] == row["reward"]
        groups = [row[x] for x in ("live_groups", "dead_right", "dead_wrong")]
        assert sum(groups) == pytest.approx(1)
        assert row["sequences"] == row["live_groups"] * 32
        ended = [row[f"ended_by_{x}"] for x in ("model", "budget", "context")]
        assert sum(ended) == pytest.approx(1)
        assert 0 < row["forced"] < 1 and row["thinking_tokens"] <= 4 and row["answer_tokens"] <= 1
        if row["sequences"]:
            assert row["gap_max"] <= TOLERANCE["sampled log-probability = whole forward, absolute"]
            assert row["gap_mean"] <= row["gap_max"] and row["entropy"] > 0
        for name in ("rollout_s", "grading_s", "step_s", "load_s", "tokens_per_s"):
            assert row[name] >= 0
    assert f"step {STEPS}/{STEPS}  reward" in out


def test_held_out_questions_are_compared_with_before(finished):
    run, out = finished
    evaluated = rows(run / "held_out.jsonl")
    assert [row["step"] for row in evaluated] == [0, 3, 6]
    first, last = evaluated[0]["points"], evaluated[-1]["points"]
    assert [p["budget"] for p in last] == [0, 4] and {len(p["right"]) for p in last} == {5}
    row = rows(run / "metrics.jsonl")[-1]
    for a, b in zip(first, last, strict=True):
        name = f"held_out/{a['budget']}"
        assert row[f"{name}/accuracy"] == sum(b["right"]) / 5
        gained = (sum(b["right"]) - sum(a["right"])) / 5
        assert row[f"{name}/difference"] == pytest.approx(gained)
        assert row[f"{name}/low"] <= row[f"{name}/accuracy"] <= row[f"{name}/high"]
    assert "held out  step 0: 0: " in out


def test_samples_can_be_read(finished):
    run, _ = finished
    found = rows(run / "samples.jsonl")
    assert [sum(row["step"] == n for row in found) for n in range(1, STEPS + 1)] == [10] * STEPS
    for row in found:
        assert row["question"].startswith("Which?") and row["budget"] in (1, 4)
        assert (row["outcome"] == "right") == (row["reward"] == 1) == (row["prediction"] == RIGHT)
        assert row["usage"]["thinking_tokens"] <= row["budget"]


def test_the_export_is_a_model(finished):
    run, out = finished
    assert f"exported to {run / 'hf'}" in out
    transformers.AutoModelForCausalLM.from_pretrained(run / "hf")
    content = json.loads((run / "hf" / "generation_config.json").read_text())
    assert content["jaxs1"] == {"preset": "s1"}
    for mine, exported in zip(params_of(run), params_of(run / "hf"), strict=True):
        np.testing.assert_array_equal(mine, exported)


def test_killed_and_resumed_equals_uninterrupted_bitwise(bandit, finished, tmp_path):
    whole, _ = finished
    run = tmp_path / "killed"
    more = held_out(bandit)
    process = start(arguments(bandit, run, **more))
    for line in process.stdout:
        if line.startswith("step 4/"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = start(arguments(bandit, run, **more, resume="auto"))
    out, err = again.communicate(timeout=500)
    assert again.returncode == 0, err
    assert "resuming  after step" in out
    for name in ("metrics.jsonl", "held_out.jsonl", "samples.jsonl"):
        assert without_times(run / name) == without_times(whole / name), name
    for mine, theirs in zip(params_of(run), params_of(whole), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    other = start(arguments(bandit, run, **more, resume="auto", group=4))
    _, err = other.communicate(timeout=300)
    assert other.returncode == 2 and "group (8 then, 4 now)" in err


def test_a_bandit_is_won(bandit, tmp_path):
    """One right answer of six: from about a sixth to more than nine in ten, in 40 steps."""
    run = tmp_path / "won"
    process = start(arguments(bandit, run, steps=40, checkpoint__every=0, thinking__num_waits=0))
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    reward = [row["reward"] for row in rows(run / "metrics.jsonl")]
    assert np.mean(reward[:2]) < 0.4
    assert np.mean(reward[-3:]) > 0.9, reward


@pytest.mark.parametrize(
    "more",
    [
        {"objective.kl": 0.1, "objective.old": "trainer", "objective.updates": 2},
        {"lora.rank": 2, "lora.frozen_dtype": "float32"},
    ],
    ids=["kl, importance sampling, two updates", "adapters"],
)
def test_variants_run(more, bandit, tmp_path):
    run = tmp_path / "variant"
    process = start(arguments(bandit, run, steps=2, **more))
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    row = rows(run / "metrics.jsonl")[0]
    assert row["gap_max"] <= TOLERANCE["sampled log-probability = whole forward, absolute"]
    assert ("kl" in row) == ("tis_cut" in row) == ("objective.kl" in more)
    if "kl" in row:
        assert (
            row["kl"] > 0
        )  # after the first of two updates the model is no longer the initial one
    else:
        assert (run / "peft").is_dir() and (run / "hf").is_dir()


def test_two_processes_are_one(bandit, tmp_path):
    """Each rolls out half of the questions; equal rewards, losses up to rounding, one log."""
    more = {"steps": 2, "checkpoint.every": 0, **held_out(bandit), "objective.old": "trainer"}
    alone = start(arguments(bandit, tmp_path / "one", **more))
    _, err = alone.communicate(timeout=500)
    assert alone.returncode == 0, err
    port = int(np.random.default_rng().integers(20000, 60000))
    more |= {"mesh.fsdp": 2, "distributed.num_processes": 2}
    more |= {"distributed.coordinator": f"localhost:{port}"}
    run = tmp_path / "two"
    pair = [start(arguments(bandit, run, **more, distributed__process_id=i)) for i in range(2)]
    outputs = [process.communicate(timeout=500) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    assert "step 2/2" in outputs[0][0] and "step" not in outputs[1][0]
    for name in ("held_out.jsonl", "samples.jsonl"):
        assert without_times(run / name) == without_times(tmp_path / "one" / name), name
    found = [rows(folder / "metrics.jsonl") for folder in (run, tmp_path / "one")]
    for many, one in zip(*found, strict=True):
        assert many["reward"] == one["reward"] and many["sequences"] == one["sequences"]
        tolerance = TOLERANCE["processes = one process, losses"]
        assert many["loss"] == pytest.approx(one["loss"], rel=tolerance, abs=1e-7)
        assert many["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


def test_equal_rewards_change_nothing(bandit, tmp_path):
    """No answer is ever right: all groups are dead, and the export is the model."""
    rows_ = [{"question": f"Which? {i}", "answer": "77"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_))
    run = tmp_path / "dead"
    process = start(arguments(bandit, run, task=tmp_path / "rows.jsonl", steps=2))
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    found = rows(run / "metrics.jsonl")
    assert [row["dead_wrong"] for row in found] == [1, 1] and "loss" not in found[0]
    for mine, before in zip(params_of(run), params_of(bandit / "model"), strict=True):
        np.testing.assert_array_equal(mine, before)


def test_many_devices_roll_out_and_learn_as_one(bandit, finished, tmp_path):
    """Training on fsdp 2 x context 2 x tensor 2, roll-outs on four copies of two devices."""
    run = tmp_path / "many"
    mesh = {"mesh.fsdp": 2, "mesh.context": 2, "mesh.tensor": 2, "tensor": 2}
    assert main(arguments(bandit, run, **{"steps": 2, "checkpoint.every": 0, **mesh})) == 0
    one = arguments(bandit, tmp_path / "one", **{"steps": 2, "checkpoint.every": 0})
    process = start(one)
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    found = [rows(folder / "metrics.jsonl") for folder in (run, tmp_path / "one")]
    for many, alone in zip(*found, strict=True):
        assert many["reward"] == alone["reward"]
        assert many["loss"] == pytest.approx(alone["loss"], rel=1e-4, abs=1e-6)
        assert many["gap_max"] <= TOLERANCE["sampled log-probability = whole forward, absolute"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"group": 1}, "group=1"),
        ({"temperature": 0}, "temperature=0.0"),
        ({"budgets.values": "[0,4]", "thinking.answer_prefix": "null"}, "a budget of 0"),
        ({"budgets.values": "[4,500]"}, "the model's context=128"),
        ({"limits.max_seq_len": 20}, "limits.max_seq_len=20"),
        ({"row_length": 16}, "row_length=16"),
        ({"prompts": 13}, "prompts=13: the task has 12"),
        ({"thinking.max": 4}, "thinking.max=4"),
        ({"thinking.mode": "s1_harness"}, "thinking.mode=s1_harness"),
        ({"thinking.max_answer_tokens": -1}, "thinking.max_answer_tokens=-1"),
        ({"thinking.min": 3}, "thinking.min=3"),
        ({"task": "nowhere"}, "task=nowhere: unknown task"),
        ({"thinking.delimiters.ends": '["!?"]'}, "training needs ends of one token"),
        ({"sampling.top_p": 0.9}, "sampling"),
    ],
)
def test_a_mistake_is_one_line(more, words, bandit, tmp_path):
    with pytest.raises(UserError) as error:
        prepare(parse(GrpoConfig, arguments(bandit, tmp_path / "run", **more), command="grpo"))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_used_output_is_refused(bandit, finished):
    run, _ = finished
    with pytest.raises(UserError, match="already holds a run, up to step 6"):
        main(arguments(bandit, run))
