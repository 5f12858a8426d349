"""`make demo`: shortened, it runs to its end and resumes; its recorded runs are the recipe's."""

import itertools
import json
import os
from dataclasses import replace

import pytest
from scipy import stats

from benchmarks.demo_runs import RECORDED, page, read_runs, recipe_digest
from jaxs1 import demo
from jaxs1.config import UserError, parse
from jaxs1.demo import WAITS, DemoConfig, _show_rescue, comparison, main
from jaxs1.evaluate import EvaluateConfig
from jaxs1.evaluation.metrics import Comparison
from jaxs1.evaluation.results import read_results
from jaxs1.evaluation.samples import Key, Samples
from jaxs1.rl.config import GrpoConfig
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


def test_comparison_with_waits_is_one_plain_sentence():
    """The figures of a table that is written out: 80 gained and 20 lost among 400 questions."""
    recorded = RUNS[0].results
    natural, *_ = points(recorded, "num_waits")
    found = Comparison(0.15, 0.1043, 0.1946, 4.2e-10, 80, 20)
    changed = replace(natural, value=3, accuracy=0.64, versus_natural=found)
    results = replace(recorded, points=[replace(natural, accuracy=0.49), changed])
    assert comparison(results, 3) == (
        "With 3 Waits 64.0% of 400 answers are correct, with natural stopping 49.0%: +15.0 points "
        "on the same questions (95 % interval +10.4 to +19.5, p < 0.001, McNemar's exact test)."
    )
    close = replace(changed, versus_natural=replace(found, low=-0.004, p_value=0.0523))
    results = replace(results, points=[results.points[0], close])
    assert "(95 % interval -0.4 to +19.5, p = 0.052, McNemar's exact test)." in comparison(
        results, 3
    )
    same = replace(changed, versus_natural=None)
    results = replace(results, points=[results.points[0], same])
    assert comparison(results, 3).endswith("as with natural stopping: no answer changed.")


def test_reinforcement_learning_continues_the_demo(tmp_path, monkeypatch, capsys):
    """Its command, two more evaluations, the picture, and a line for every stage."""
    commands = []
    monkeypatch.setattr(demo, "_run", lambda *words: commands.append(words))
    monkeypatch.setattr(demo, "read_results", lambda folder: RUNS[0].results)
    demo._reinforce(DemoConfig(output=str(tmp_path), questions=7))
    assert [module for module, *_ in commands] == ["jaxs1.grpo", *["jaxs1.evaluate"] * 2]
    schemas = [GrpoConfig, EvaluateConfig, EvaluateConfig]
    grpo, base, after = (
        parse(schema, ["--config", recipe, *words], command="test")
        for schema, (_, recipe, *words) in zip(schemas, commands, strict=True)
    )
    assert grpo.model == f"{tmp_path}/sft/hf" and grpo.output == f"{tmp_path}/grpo"
    assert grpo.data.path == f"{tmp_path}/data/train.jsonl" and grpo.resume == "auto"
    assert base.model == f"{tmp_path}/base/hf" and base.sweep.num_waits == [0]
    assert after.model == f"{grpo.output}/hf" and 192 in after.sweep.budget
    assert base.output != after.output and base.limit == after.limit == 7
    assert (tmp_path / "stages.png").stat().st_size > 1000
    natural, *_ = points(RUNS[0].results, "num_waits")
    line = f"{natural.accuracy:6.1%} with natural stopping ({natural.thinking_tokens:.0f} tokens)"
    assert capsys.readouterr().out.count(line) == 3


# Gates on the recorded runs: only a change of what is recorded or of the recipe can make them fail.
RUNS = read_runs()
each_run = pytest.mark.parametrize("run", RUNS, ids=[f"{run.isa}_{run.seed}" for run in RUNS])


def points(results, method):
    return sorted(results.of(method), key=lambda point: point.value)


@each_run
def test_recorded_with_todays_recipe(run):
    recipe = str(ROOT / "configs" / "demo_evaluate.yaml")
    config = parse(EvaluateConfig, ["--config", recipe], command="test")
    assert [p.value for p in points(run.results, "budget")] == config.sweep.budget
    assert [p.value for p in points(run.results, "num_waits")] == config.sweep.num_waits
    assert run.results.questions == EVALUATION_QUESTIONS
    assert run.recipe == recipe_digest()


@each_run
def test_recorded_accuracy_rises_with_the_budget(run):
    accuracy = [p.accuracy for p in points(run.results, "budget")]
    rising = [a < b for a, b in itertools.pairwise(accuracy)]
    assert len(accuracy) >= 5
    assert all(rising[:4])
    assert points(run.results, "budget")[0].high < points(run.results, "budget")[4].low


@each_run
def test_recorded_waits_beat_natural_stopping_on_the_same_questions(run):
    """The accuracies, and the counts of changed answers, which are tested anew."""
    accuracy = {p.value: p.accuracy for p in points(run.results, "num_waits")}
    found = run.point.versus_natural
    assert accuracy[WAITS] - accuracy[0] == pytest.approx(found.difference)
    assert found.gained - found.lost == round(found.difference * run.results.questions)
    assert found.difference >= 0.05
    assert stats.binomtest(found.gained, found.gained + found.lost).pvalue < 0.01


@each_run
def test_recorded_budgets_are_kept_exactly(run):
    assert all(p.samples_within_bound == 1 for p in run.results.points)


def test_the_recorded_page_is_that_of_the_recorded_runs():
    assert (RECORDED / "runs.md").read_text() == page(RUNS)
