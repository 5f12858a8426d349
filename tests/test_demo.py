"""`make demo`: shortened, it runs to its end and resumes; its recorded results are the recipe's."""

import itertools
import json
import os

import pytest

from jaxs1.config import UserError, parse
from jaxs1.demo import DemoConfig, _show_rescue, main
from jaxs1.evaluate import EvaluateConfig
from jaxs1.evaluation.results import read_results
from jaxs1.evaluation.samples import Key, Samples
from jaxs1.tasks.puzzle_corpus import EVALUATION_QUESTIONS
from tests.conftest import ROOT

SIZES = {"documents": 50, "traces": 100, "steps": 5, "questions": 2, "problems": 2}
SECONDS = 1800  # on a machine that others share


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def kept(folder):
    """What a second start must leave alone: corpus and checkpoints, samples and metrics."""
    stages = [folder / stage / "checkpoints" for stage in ("base", "sft")]
    paths = [path for top in (folder / "data", *stages) for path in top.rglob("*")]
    times = {path: path.stat().st_mtime_ns for path in paths if path.is_file()}
    lines = ("evaluation/samples.jsonl", "base/metrics.jsonl", "sft/metrics.jsonl")
    return times | {folder / name: (folder / name).read_bytes() for name in lines}


@pytest.mark.slow
def test_shortened_demo_runs_to_its_end_and_repeats_nothing(tmp_path, run_module):
    out = tmp_path / "demo"
    sizes = [str(word) for name, value in SIZES.items() for word in (f"--{name}", value)]
    first = run_module("jaxs1.demo", "--output", out, *sizes, timeout=SECONDS)
    assert first.returncode == 0, first.stderr[-2000:]
    assert len(read(out / "data" / "sft.jsonl")) == SIZES["traces"]
    for stage in ("base", "sft"):
        assert read(out / stage / "metrics.jsonl")[-1]["step"] == SIZES["steps"]
        for name in ("hf/model.safetensors", "hf/tokenizer.json", "config.yaml"):
            assert (out / stage / name).is_file()
    assert (out / "scaling.png").read_bytes() == (out / "evaluation/scaling.png").read_bytes()
    results = read_results(str(out / "evaluation"))
    assert results.questions == SIZES["questions"] and results.natural == "num_waits 0"
    assert "correct with natural stopping" in first.stdout
    assert first.stdout.count("$ python -m jaxs1.") == 3
    before = kept(out)
    assert len(before) > 10

    again = run_module("jaxs1.demo", "--output", out, *sizes, timeout=SECONDS)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "requests to" in first.stdout and "requests to" not in again.stdout
    assert kept(out) == before
    assert read_results(str(out / "evaluation")) == results


@pytest.mark.parametrize("name", SIZES)
def test_sizes_below_one_are_refused(name):
    with pytest.raises(UserError, match=f"{name}=0: must be 1 or more"):
        main([f"--{name}", "0"])


def test_defaults_are_those_of_the_recorded_demo():
    config = DemoConfig()
    assert (config.documents, config.traces, config.steps) == (11_770, 1000, None)
    assert config.questions == EVALUATION_QUESTIONS == 400


def test_the_rescued_question_is_found_with_the_fewest_waits(tmp_path, capsys):
    recipe = ["--config", str(ROOT / "configs" / "demo_evaluate.yaml"), "--limit", "3"]
    config = parse(EvaluateConfig, recipe, command="test")
    samples = Samples(tmp_path / "evaluation", {})
    right = {0: (False, True, False), 1: (False, False, False), 2: (True, True, False)}
    for waits, corrects in right.items():
        for number, correct in enumerate(corrects):
            sample = {
                "correct": correct, "question": f"Make {number}", "answer": "\n7*4",
                "thinking": f"thought {waits}",
            }  # fmt: skip
            samples.add(Key(f"max=400 num_waits={waits}", number, 0), [sample])
    samples.close()
    _show_rescue(tmp_path, config)
    assert capsys.readouterr().out == (
        "   Make 0, without a Wait: 7*4, which is wrong\n"
        "   with 2:\n   | thought 2\n   | \n   | 7*4\n\n"
    )
    os.truncate(tmp_path / "evaluation" / "samples.jsonl", 0)
    _show_rescue(tmp_path, config)
    assert capsys.readouterr().out == "   no answer that was wrong became correct with a Wait\n"


# A gate on recording benchmarks/demo anew (seed 0): these tests check the committed results, so
# only a change of the recorded file or of the recipe can make them fail.


@pytest.fixture(scope="module")
def recorded():
    return read_results(str(ROOT / "benchmarks" / "demo"))


def points(results, method):
    return sorted(results.of(method), key=lambda point: point.value)


def test_recorded_with_todays_recipe(recorded):
    recipe = str(ROOT / "configs" / "demo_evaluate.yaml")
    config = parse(EvaluateConfig, ["--config", recipe], command="test")
    assert [p.value for p in points(recorded, "budget")] == config.sweep.budget
    assert [p.value for p in points(recorded, "num_waits")] == config.sweep.num_waits
    assert recorded.settings["thinking"]["answer_prefix"] == config.thinking.answer_prefix
    assert recorded.questions >= 300


def test_recorded_accuracy_rises_with_the_budget(recorded):
    accuracy = [p.accuracy for p in points(recorded, "budget")]
    rising = [a < b for a, b in itertools.pairwise(accuracy)]
    assert len(accuracy) >= 5
    assert all(rising[:4])
    assert points(recorded, "budget")[0].high < points(recorded, "budget")[4].low


def test_recorded_waits_beat_natural_stopping_beyond_both_intervals(recorded):
    natural, *waits = points(recorded, "num_waits")
    assert natural.value == 0
    assert max(p.low for p in waits) > natural.high


def test_recorded_budgets_are_kept_exactly(recorded):
    assert all(p.samples_within_bound == 1 for p in recorded.points)
