"""The four commands of docs/distillation.md, one after the other, on tiny models."""

import json
from importlib import import_module

import pytest

from jaxs1.__main__ import find
from tests.conftest import ROOT
from tests.decoding import engines
from tests.distillation import fake
from tests.documents import commands


def settings(tokenizer, url):
    """Command -> words that are replaced, and settings added at its end."""
    tiny = {"tokenizer": tokenizer, "steps": 2, "batch_size": 8, "data.block_size": 256,
            "data.rows": 8, "checkpoint.every": 0}  # fmt: skip
    short = {"data.path": "math500.jsonl", "limits.max_seq_len": 128, "limits.max_num_seqs": 2,
             "thinking.max_answer_tokens": 8, "thinking.min_answer_tokens": 4}  # fmt: skip
    return {
        "traces": ({"simplescaling/s1K": "questions.jsonl"},
                   {"endpoint.url": url, "endpoint.backoff": 0.01}),
        "curate": ({}, {}),
        "train": ({"s1_7b_lora": str(ROOT / "configs" / "tiny.yaml")}, tiny),
        "evaluate": ({"[1024,4096]": "[8,16]"}, short),
    }  # fmt: skip


@pytest.mark.slow
def test_from_an_empty_folder_to_a_student(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEACHER_KEY", "secret")
    # the benchmark has one of the questions, which training must not see
    leak = "Find the number of ways to put nine coins into bags."
    leaked = {"question": leak, "solution": "0", "source_type": "sums"}
    fake.write_questions(tmp_path / "questions.jsonl", [*fake.rows(24), leaked])
    rows = [{"problem": text, "answer": "4"} for text in (leak, "Add 1 and 3.")]
    fake.write_questions(tmp_path / "math500.jsonl", rows)
    ways = [words for where, words in commands(ROOT / "docs" / "distillation.md")][:6]
    done = []
    with fake.serve() as server:
        known = settings(engines.tokenizer_folder(), server.url)
        for words in ways:
            if words[0] != "jaxs1":
                continue
            name, argv = find(words[1:])
            replaced, more = known[name]
            argv = [replaced.get(word, word) for word in argv]
            argv += [str(x) for key, value in more.items() for x in (f"--{key}", value)]
            assert not import_module(f"jaxs1.{name}").main(argv), capsys.readouterr()
            done.append(name)
    assert done == ["traces", "curate", "train", "evaluate"]
    kept = {row["question"] for row in fake.read(tmp_path / "runs/traces/traces.jsonl")}
    selected = [row["question"] for row in fake.read(tmp_path / "runs/curated/selected.jsonl")]
    assert len(kept) == len(fake.read(tmp_path / "runs/traces/traces.jsonl")) > 15
    assert leak in kept and set(selected) == kept - {leak}
    assert (tmp_path / "runs/student/hf/model.safetensors").exists()
    results = json.loads((tmp_path / "runs/evaluation/results.json").read_text())
    assert results["task"] == "math500"
