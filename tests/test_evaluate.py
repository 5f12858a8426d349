"""The command on a stand-in for the engine: what it measures, killed and resumed, refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module

import pytest

from jaxs1.config import UserError
from jaxs1.data.tokenizer import load_tokenizer, train_tokenizer
from jaxs1.evaluation.methods import CLASSES
from tests.conftest import ROOT
from tests.curation.pools import write_jsonl
from tests.evaluation.fake import Engine, config, evaluate, sums

command = import_module("jaxs1.evaluate")

COUNT = 40


@pytest.fixture
def task(tmp_path):
    return sums(tmp_path / "sums.jsonl", COUNT)


def lines(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def by_label(results):
    return {(p.method, p.value): p for p in results.points}


def test_budgets_and_waits(task, tmp_path):
    """Greedy, the stand-in is right where it thinks 20 + number tokens; it wants 40 to 59."""
    out = tmp_path / "out"
    engine = Engine()
    sweep = ("--sweep.budget", "[0,10,30,-1]", "--sweep.num_waits", "[0,2]")
    results = evaluate(config("--task", task, "--output", out, *sweep), engine)
    # natural = no budget = no Waits: asked once
    assert len(engine.requests) == len(lines(out)) == 5 * COUNT
    points = by_label(results)
    for budget, right in ((0, 0), (10, 0), (30, 11)):
        point = points["budget", budget]
        assert point.thinking_tokens == budget and point.right == right
        assert point.accuracy == right / COUNT and point.low <= right / COUNT <= point.high
        assert point.thinking_ended_by == {"budget": COUNT} and point.samples_within_bound == 1
    assert points["budget", -1].right == points["num_waits", 0].right
    assert results.natural == "budget -1" and points["budget", -1].versus_natural is None
    compared = points["budget", 30].versus_natural
    natural = points["budget", -1].right
    assert compared.gained - compared.lost == points["budget", 30].right - natural < 0
    assert compared.difference == (points["budget", 30].right - natural) / COUNT
    assert compared.high < 0 and compared.p_value < 0.05  # the same questions are lost
    assert points["num_waits", 0].versus_natural is None  # the same samples
    assert points["num_waits", 2].waits == 2 and points["num_waits", 2].right == COUNT
    budgets = results.methods["budget"]
    assert budgets.control == 1 and budgets.scaling_per_doubling > 0
    assert budgets.performance == points["budget", -1].accuracy
    assert json.loads((out / "results.json").read_text()) == results.as_json()
    for picture in ("scaling.png", "waits.png", "differences.png"):
        assert (out / picture).stat().st_size > 10_000
    assert not (out / "majority.png").exists()
    table = (out / "results.md").read_text()
    assert f"| budget 30 | {100 * 11 / COUNT:.1f} |" in table and "scaling.png" in table


def test_every_sample_can_be_asked_for_again(task, tmp_path):
    out = tmp_path / "out"
    engine = Engine()
    evaluate(config("--task", task, "--output", out, "--sweep.budget", "[30]"), engine)
    settings = json.loads((out / "settings.json").read_text())
    assert settings["model"] == "fake" and settings["thinking"]["preset"] == "s1"
    for line in lines(out):
        assert line["usage"]["thinking_tokens"] == 30 and len(line["thinking_ids"]) == 30
        assert line["reference"] == str(3 * line["question_id"] + 1)
        # behind the answer_prefix, the first line is the answer, whatever follows
        assert line["answer"].startswith(f" {line['prediction']}\n")
        assert line["correct"] == (line["prediction"] == line["reference"])


def test_other_ways_of_control(task, tmp_path):
    sweep = {
        "token_prompt": "[30,60]",
        "step_prompt": "[3]",
        "class_prompt": "[short,long]",
        "rejection": "[45,60]",
    }
    arguments = [x for name, value in sweep.items() for x in (f"--sweep.{name}", value)]
    engine, out = Engine(), tmp_path / "out"
    asked = ("--task", task, "--sampling.temperature", 1, "--n", 3)
    results = evaluate(config(*asked, "--output", out, *arguments), engine)
    prompts = {engine.tokenizer.decode(r.prompt_ids) for r in engine.requests}
    first = "<user>What is the sum of 0 and 1?"
    assert f"{first}<assistant>" in prompts
    for text in (
        "Think for up to 30 tokens.",
        "Think for up to 60 tokens.",
        "Think for up to 3 steps.",
        *CLASSES.values(),
    ):
        assert f"{first}\n\n{text}<assistant>" in prompts
    points, methods = by_label(results), results.methods
    assert methods["token_prompt"].control == 0.5  # 50 tokens, asked for 30 and for 60
    assert points["token_prompt", 30].samples_within_bound == 0
    assert points["step_prompt", 3].bound.unit == "steps"
    usual = points["class_prompt", None].thinking_tokens
    assert points["class_prompt", "short"].bound.high == usual
    assert points["class_prompt", "short"].within_bound and methods["class_prompt"].runs == 3
    assert methods["rejection"].control == 1 and points["rejection", 45].samples_within_bound == 1
    assert points["rejection", 45].draws > 2 > points["rejection", 60].draws == 1
    assert set(points["rejection", 45].majority) == {1, 2, 3}
    # what was drawn again had another seed; what all points draw first, they share
    seeds = {(x["question_id"], x["attempt"]): x["seed"] for x in lines(out)}
    assert len(set(seeds.values())) == len(seeds)
    first_draws = [x for x in lines(out) if not x["attempt"]]
    assert len(first_draws) == 3 * COUNT * 6  # 2 token, 1 step, short, long, and plain


def test_rejected_in_every_draw_counts_as_wrong(task, tmp_path):
    sweep = ("--sweep.rejection", "[39]", "--sweep.tries", 3, "--sampling.temperature", 1)
    engine = Engine()
    results = evaluate(config("--task", task, "--output", tmp_path / "out", *sweep), engine)
    (point,) = results.points
    assert len(engine.requests) == 3 * COUNT and point.draws == 3
    assert point.too_long == COUNT and point.right == 0 and not point.within_bound
    assert point.majority == {1: 0.0}
    assert (
        "40 of 40 samples were too long in every draw"
        in (tmp_path / "out" / "results.md").read_text()
    )


def test_forced_prompts_keep_their_bound(task, tmp_path):
    sweep = ("--sweep.token_prompt", "[20,30]", "--sweep.step_prompt", "[1]", "--sweep.force", True)
    more = ("--sweep.tokens_per_step", 16)
    results = evaluate(
        config("--task", task, "--output", tmp_path / "out", *sweep, *more), Engine()
    )
    assert results.methods["token_prompt"].control == 1
    assert by_label(results)["step_prompt", 1].thinking_tokens == 16


def test_votes(task, tmp_path):
    """Against a count of one's own, from the samples."""
    more = ("--sampling.temperature", 1, "--n", 5, "--sweep.num_waits", "[1]")
    results = evaluate(config("--task", task, "--output", tmp_path / "out", *more), Engine())
    given = {}
    for x in lines(tmp_path / "out"):
        given.setdefault(x["question_id"], []).append((int(x["prediction"]), x["reference"]))
    (point,) = results.points
    for k in (1, 2, 4, 5):
        won = 0
        for answers in given.values():
            first = [answer for answer, _ in answers[:k]]
            winner = max(first, key=lambda a: (first.count(a), -first.index(a)))
            won += str(winner) == answers[0][1]
        assert point.majority[k] == won / COUNT
    assert point.majority[5] > point.majority[1]
    low, high = point.low, point.high
    assert high - low > 0.2  # 40 questions, not 200 samples
    assert (tmp_path / "out" / "majority.png").exists()


def test_compare(task, tmp_path):
    for name in ("a", "b"):
        sweep = ("--sweep.num_waits", "[0,1]", "--output", tmp_path / name)
        compare = ("--compare", tmp_path / "a") if name == "b" else ()
        evaluate(config("--task", task, *sweep, *compare), Engine(fingerprint=name))
    alone, both = ((tmp_path / name / "scaling.png").read_bytes() for name in ("a", "b"))
    assert alone != both
    with pytest.raises(UserError, match=r"compare=\S+: cannot be read"):
        evaluate(config("--task", task, "--compare", tmp_path / "no"), Engine())
    other = sums(tmp_path / "other.jsonl", 2)
    with pytest.raises(UserError, match=r"has another task, sums.jsonl; give an evaluation of oth"):
        evaluate(config("--task", other, "--compare", tmp_path / "a"), Engine())


def test_more_points_and_questions_add_to_what_is_there(task, tmp_path):
    out = ("--task", task, "--output", tmp_path / "out")
    evaluate(config(*out, "--limit", 5, "--sweep.budget", "[30]"), Engine())
    engine = Engine()
    results = evaluate(config(*out, "--limit", 8, "--sweep.budget", "[30,40]"), engine)
    assert len(engine.requests) == 3 + 8 and results.questions == 8
    whole = evaluate(
        config("--task", task, "--output", tmp_path / "whole", "--limit", 8,
               "--sweep.budget", "[30,40]"),
        Engine(),
    )  # fmt: skip
    assert results == whole


def run_fake(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.evaluation.fake", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_killed_and_resumed_is_as_never_killed(task, tmp_path):
    sweep = ("--sweep.budget", "[20,40]", "--sweep.rejection", "[45]")
    more = ("--task", task, *sweep, "--sampling.temperature", 1, "--n", 2)
    out, asked = tmp_path / "killed", tmp_path / "asked"
    process = run_fake(*more, "--output", out, SECONDS="0.02", ASKED=str(asked))
    file = out / "samples.jsonl"
    deadline = time.monotonic() + 60
    while not file.exists() or file.read_bytes().count(b"\n") < 60:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()  # also closes its pipe
    before = file.read_bytes()
    assert not (out / "results.json").exists()
    with file.open("ab") as torn:  # a kill in the midst of a request's second line
        torn.write(before.splitlines(keepends=True)[0] + b'{"point": "ma')
    asked_before = asked.read_text().splitlines()

    evaluate(config(*more, "--output", out), Engine(asked=asked))
    assert file.read_bytes().startswith(before)
    kept = before.count(b"\n") // 2
    again = asked.read_text().splitlines()
    assert 0 <= len(asked_before) - kept <= 1  # at most the one in the making is asked again
    assert len(again) - len(set(again)) <= 1

    evaluate(config(*more, "--output", tmp_path / "whole"), Engine())
    for name in ("results.json", "results.md", "settings.json"):
        assert (out / name).read_text() == (tmp_path / "whole" / name).read_text()
    done = {json.dumps(x, sort_keys=True) for x in lines(out)}
    assert done == {json.dumps(x, sort_keys=True) for x in lines(tmp_path / "whole")}
    assert len(done) == len(lines(out))


def test_what_cannot_run_is_told_and_tried_again(tmp_path):
    rows = [{"question": f"{q} {i} and 1?", "answer": i + 1} for i, q in enumerate("abc")]
    rows[1]["question"] = "unanswerable 3 and 4?"
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    asked = ("--task", path, "--output", tmp_path / "out")
    results = evaluate(config(*asked), Engine())
    (point,) = results.points
    assert point.samples == 3 and point.finish_reason == {"error": 1, "stop": 2}
    assert point.right == 2 and point.thinking_tokens >= 40
    warning = "as configured: 1 of 3 samples could not run and count as wrong"
    assert warning in (tmp_path / "out" / "results.md").read_text()
    engine = Engine()
    assert evaluate(config(*asked), engine) == results and len(engine.requests) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--sampling.temperature", 1), "samples have sampling.temperature=0.0, now it is 1.0"),
        (("--thinking.preset", "think_tags"), 'thinking.preset="s1", now it is "think_tags"'),
        (("--seed", 1), "samples have seed=0, now it is 1"),
        ((), 'samples have model="other", now it is "fake"'),
    ],
)
def test_folder_of_other_settings_is_refused(task, tmp_path, changed, message):
    asked = ("--task", task, "--output", tmp_path / "out", "--limit", 2)
    evaluate(config(*asked), Engine(fingerprint="fake" if changed else "other"))
    before = (tmp_path / "out" / "samples.jsonl").read_bytes()
    with pytest.raises(UserError, match=re.escape(message)) as refusal:
        evaluate(config(*asked, *changed), Engine())
    assert "give the same, or another --output" in str(refusal.value)
    assert (tmp_path / "out" / "samples.jsonl").read_bytes() == before


def test_folder_of_something_else_or_damaged_is_refused(task, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    asked = ("--task", task, "--output", out, "--limit", 3)
    with pytest.raises(UserError, match=r"exists and is not an evaluation"):
        evaluate(config(*asked), Engine())
    (out / "thesis.tex").unlink()
    evaluate(config(*asked), Engine())
    file = out / "samples.jsonl"
    file.write_text("rubbish\n" + file.read_text())
    with pytest.raises(UserError, match=r"samples.jsonl:1: is damaged; remove the line"):
        evaluate(config(*asked), Engine())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", ""), "task='': must name the questions"),
        (("--model", ""), "model='': must name the weights"),
        (("--n", 0), "n=0: must be 1 or more"),
        (("--n", 4), "n=4: all samples of greedy decoding are equal"),
        (("--sweep.rejection", "[10]"), "greedy decoding draws the same again"),
        (("--sweep.num_waits", "[-1]"), "sweep.num_waits=-1: must be 0 or more"),
        (("--sweep.budget", "[8,8]"), "sweep.budget=[8, 8]: names a value twice"),
        (("--sweep.class_prompt", "[brief]"), "sweep.class_prompt"),
        (("--sweep.budgets", "[8]"), "sweep.budgets: no such field"),
        (("--thinking.mode", "loud"), "thinking.mode"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    with pytest.raises(UserError) as refusal:
        config("--task", "puzzles", *arguments)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_budget_below_the_minimum_is_refused(task, tmp_path):
    sweep = ("--sweep.budget", "[8]", "--thinking.min", 9, "--output", tmp_path / "out")
    with pytest.raises(UserError, match=r"thinking.min=9: must not exceed thinking.max=8"):
        evaluate(config("--task", task, *sweep), Engine())
    assert not (tmp_path / "out").exists()


def test_what_needs_no_model_is_checked_before_it_is_loaded(task, tmp_path):
    for wrong in (
        ("--task", "math50"),
        ("--task", task, "--compare", tmp_path / "no"),
        ("--task", task, "--sweep.budget", "[8]", "--thinking.min", 9),
    ):
        with pytest.raises(UserError):
            command.evaluate(config(*wrong), pytest.fail)


def test_automatic_budget_is_that_of_all_questions(task, tmp_path):
    """s1's harness: max_gen_toks - longest prompt - start - close - prefix - 100; resumed, too."""
    train_tokenizer(["What is the sum of 0 and 1?"], tmp_path / "tokenizer")
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))
    last = f"What is the sum of {COUNT - 1} and {2 * COUNT - 1}?"
    prompt = f"<|im_start|>user\n{last}<|im_end|>\n<|im_start|>assistant\n<|im_start|>think"
    cut = "<|im_start|>answer\nFinal Answer:"
    longest, rest = (len(tokenizer(text)["input_ids"]) for text in (prompt, cut))
    mode = (
        "--thinking.mode",
        "s1_harness",
        "--thinking.max",
        "auto",
        "--thinking.max_answer_tokens",
        900,
    )
    out = tmp_path / "out"
    for _ in range(2):
        engine = Engine()
        engine.tokenizer = tokenizer
        evaluate(config("--task", task, "--output", out, *mode), engine)
        assert {r.thinking.max for r in engine.requests} == {900 - longest - rest - 100}
        whole = (out / "samples.jsonl").read_text().splitlines(keepends=True)
        done = [x for x in whole if f"of {COUNT - 1} and" in x]  # what is left is shorter
        (out / "samples.jsonl").write_text("".join(done))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"question": "half \ud83d", "answer": 1},
            r"sums.jsonl:2: question: contains .ud83d, half",
        ),
        ({"question": "a", "answer": "\udc00"}, r"sums.jsonl:2: answer: contains .udc00, half"),
    ],
)
def test_text_without_an_encoding_is_named(row, words, task, tmp_path):
    task.write_text(task.read_text().splitlines()[0] + "\n" + json.dumps(row) + "\n")
    engine = Engine()
    with pytest.raises(UserError, match=words) as error:
        evaluate(config("--task", task, "--output", tmp_path / "out"), engine)
    assert "\n" not in str(error.value) and not engine.requests


def test_a_preset_that_does_not_suit_the_tokenizer_is_one_line(task, tmp_path):
    engine = Engine()
    engine.tokenizer.chat_template = "{{ '<think>' }}"
    arguments = ("--task", task, "--output", tmp_path / "out", "--thinking.preset", "s1")
    with pytest.raises(UserError, match=r"thinking.preset=s1: contradicts .*=think_tags"):
        evaluate(config(*arguments), engine)
    assert not engine.requests
