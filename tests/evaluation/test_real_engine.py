"""The command with the real engine: a tiny random model on made questions, killed and resumed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import transformers

from jaxs1.data.tokenizer import train_tokenizer
from jaxs1.tasks.benchmarks import QuestionsConfig, load_questions
from tests.conftest import ONE_DEVICE, ROOT
from tests.curation.pools import write_jsonl

COUNT = 24


@pytest.fixture(scope="module")
def math500(tmp_path_factory):
    """Questions in the form of MATH500."""
    rows = [
        {
            "problem": f"What is ${i}^2 + {i % 7}$ divided by {i % 5 + 1}?",
            "answer": f"\\frac{{{i}}}{{7}}",
        }
        for i in range(COUNT)
    ]
    return write_jsonl(tmp_path_factory.mktemp("data") / "math500.jsonl", rows)


@pytest.fixture(scope="module")
def model(math500, tmp_path_factory):
    """A folder with random weights and a tokenizer of the questions."""
    folder = tmp_path_factory.mktemp("model")
    questions = load_questions("math500", QuestionsConfig(path=str(math500))).items
    train_tokenizer((q.text for q in questions), folder, vocabulary=500)
    config = transformers.Qwen2Config(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
        use_sliding_window=False,
    )  # fmt: skip
    transformers.set_seed(0)
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def start(model, math500, output):
    settings = {
        "model": model,
        "task": "math500",
        "data.path": math500,
        "output": output,
        "sweep.budget": "[0,5,12]",
        "sweep.num_waits": "[1]",
        "thinking.max": 20,
        "thinking.max_answer_tokens": 8,
        "limits.max_num_seqs": 2,
        "limits.decode_steps": 8,
    }
    arguments = [x for name, value in settings.items() for x in (f"--{name}", str(value))]
    return subprocess.Popen(
        [sys.executable, "-m", "jaxs1.evaluate", *arguments],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ONE_DEVICE},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    said, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
def test_killed_and_resumed_is_as_never_killed(model, math500, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(model, math500, whole))
    process = start(model, math500, killed)
    file = killed / "samples.jsonl"
    while not file.exists() or file.read_bytes().count(b"\n") < COUNT:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()  # also closes its pipe
    before = file.read_bytes()
    kept = before.count(b"\n")
    assert not (killed / "results.json").exists() and COUNT <= kept < 4 * COUNT
    said = finish(start(model, math500, killed))
    assert f"{4 * COUNT - kept:,} requests" in said  # and no more
    whole_lines = before[: before.rfind(b"\n") + 1]
    assert file.read_bytes().startswith(whole_lines)
    for name in ("results.json", "results.md"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    results = json.loads((whole / "results.json").read_text())
    assert results["questions"] == COUNT
    assert [p["samples"] for p in results["points"]] == [COUNT] * 4
    for point in results["points"]:  # Control = 100 % by construction
        assert point["samples_within_bound"] == 1 and "error" not in point["finish_reason"]
