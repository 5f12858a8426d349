"""`jaxs1.traces` against an endpoint that fails at random, and with our own engine and server."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter

import pytest

from jaxs1.config import UserError
from jaxs1.curate import main as curate
from jaxs1.data.chat import encode
from jaxs1.data.config import DataConfig
from jaxs1.data.records import load_records
from jaxs1.distillation import collect, report
from jaxs1.inference.local_engine import LocalEngine
from jaxs1.traces import main
from tests.conftest import ROOT
from tests.decoding import engines
from tests.distillation import fake
from tests.distillation.bridge import bridge
from tests.serving.local import LIMITS, Local

FILES = ("traces.jsonl", "dropped.jsonl", "report.md", "report.json", "report.png", "settings.json")
MANY, TWO = fake.rows(500), 2


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def by_sample(rows):
    return {(row["question"], row["sample"]): row for row in rows}


def line_of(argv):
    with pytest.raises(UserError) as caught:
        main(argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def no_picture(request, monkeypatch):
    """Pictures take most of the time of a small run."""
    if "many" not in request.fixturenames:
        monkeypatch.setattr(report, "draw", lambda counts, path: path.touch())


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """500 questions; the folder of two samples of each, and what the endpoint saw."""
    folder = tmp_path_factory.mktemp("many")
    questions = fake.write_questions(folder / "questions.jsonl", MANY)
    with fake.serve() as server:
        assert main(fake.arguments(questions, folder / "out", server.url, n=TWO)) == 0
    return questions, folder / "out", server


def test_all_samples_are_there_and_each_has_its_reason(many):
    _, out, server = many
    kept, dropped, _ = fake.expected(MANY, TWO)
    rows, others = fake.read(out / "traces.jsonl"), fake.read(out / "dropped.jsonl")
    assert {
        key: (row["deepseek_thinking_trajectory"], row["deepseek_attempt"])
        for key, row in by_sample(rows).items()
    } == kept
    assert {key: row["reason"] for key, row in by_sample(others).items()} == dropped
    assert len(rows) + len(others) == 1000 and set(dropped.values()) == set(fake.KINDS.values()) - {
        ""
    }
    order = [(row["question_number"], row["sample"]) for row in rows]
    assert order == sorted(order)
    # faults were met and none of them cost an answer
    assert set(server.answered.values()) == {1} and len(server.answered) == 1000
    assert sum(server.arrived.values()) > 1300
    assert server.most_at_once <= 8


def test_columns_are_those_of_s1k_and_nothing_is_stale(many):
    row = fake.read(many[1] / "traces.jsonl")[0]
    assert row["question"] == "What is 0 + 0?" and row["solution"] == "0"
    assert (row["source_type"], row["difficulty"]) == ("algebra", 1)
    assert (row["deepseek_grade"], row["correct"], row["teacher"]) == ("Yes", True, "fake-r1")
    assert "thinking_trajectories" not in row
    wrong = [r for r in fake.read(many[1] / "dropped.jsonl") if r["reason"] == "wrong"]
    assert {(r["deepseek_grade"], r["correct"]) for r in wrong} == {("No", False)}
    i = int(wrong[0]["solution"])
    assert wrong[0]["detail"] == f"{i + 1} instead of {i}"


def test_cost_is_exact_and_the_report_counts_what_the_rows_say(many):
    out = many[1]
    kept, dropped, (prompt, completion) = fake.expected(MANY, TWO)
    found = json.loads((out / "report.json").read_text())
    assert (found["prompt_tokens"], found["completion_tokens"]) == (prompt, completion)
    assert found["cost"] == (prompt * fake.PRICES[0] + completion * fake.PRICES[1]) / 1e6
    assert found["kept"] == len(kept) and found["dropped"] == Counter(dropped.values())
    right = {
        (q["question"], s): fake.answer_of(q["question"], fake.seed_of(q["question"], s))[0]
        not in ("wrong", "silent", "vague")
        for q in MANY
        for s in range(TWO)
    }
    for column in ("source_type", "difficulty"):
        for value, share in found["right_by"][column].items():
            members = [q["question"] for q in MANY if str(q[column]) == value]
            samples = [right[q, s] for q in members for s in range(TWO)]
            assert share["questions"] == len(members)
            assert share["right"] == pytest.approx(sum(samples) / len(samples))
            assert share["kept"] == sum(q in members for q, _ in kept)
    text = (out / "report.md").read_text()
    assert f"${found['cost']:,.4f}" in text and "## Right answers by source\\_type" not in text
    assert "Omni\\$MATH" in text


def test_the_same_command_requests_nothing_again(many, capsys):
    questions, out, server = many
    before, arrived = contents(out), server.arrived.copy()
    assert main(fake.arguments(questions, out, "http://127.0.0.1:1/v1", n=TWO)) == 0
    assert "0 samples to request, 1,000 stored already" in capsys.readouterr().out
    assert contents(out) == before and server.arrived == arrived


@pytest.mark.slow
def test_killed_and_started_again(many, tmp_path):
    """Nothing that was stored is requested again; the output is that of the undisturbed run."""
    questions, out, _ = many
    answers = tmp_path / "out" / "answers.jsonl"
    with fake.serve() as server:
        argv = fake.arguments(questions, tmp_path / "out", server.url, n=TWO)
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxs1.traces", *argv],
            cwd=ROOT,
            env={**os.environ, "NO_PROXY": "127.0.0.1"},
            stdout=subprocess.DEVNULL,
        )
        while sum(server.answered.values()) < 400:
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
        process.wait()
        text = answers.read_text()
        complete = text[: text.rfind("\n") + 1]
        stored = {
            (row["question"], row["sample"]) for row in map(json.loads, complete.split("\n")[:-1])
        }
        assert 300 < len(stored) < 1000
        server.arrived.clear()
        assert main(argv) == 0
        again = set(server.arrived)
    assert contents(tmp_path / "out") == contents(out)
    seeds = {
        (q["question"], fake.seed_of(q["question"], s))
        for q in MANY
        for s in range(TWO)
        if (fake.key_of(q["question"]), s) in stored
    }
    assert len(seeds) == len(stored) and not seeds & again
    assert len(again) == 1000 - len(stored)


def small(tmp_path, n=12):
    return fake.write_questions(tmp_path / "questions.jsonl", fake.rows(n))


def test_a_torn_line_is_requested_again(tmp_path):
    questions = small(tmp_path)
    with fake.serve() as server:
        argv = fake.arguments(questions, tmp_path / "out", server.url)
        assert main(argv) == 0
        before = contents(tmp_path / "out")
        path = tmp_path / "out" / "answers.jsonl"
        path.write_bytes(path.read_bytes()[:-20])
        server.answered.clear()
        assert main(argv) == 0
        assert sum(server.answered.values()) == 1 and contents(tmp_path / "out") == before
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(["{}\n", *lines[1:]]))
        assert "answers.jsonl:1: is damaged; remove the line" in line_of(argv)


def test_the_order_of_arrival_does_not_matter(tmp_path):
    questions = small(tmp_path)
    with fake.serve() as server:
        for parallel in (1, 8):
            more = {"n": 2, "endpoint__parallel": parallel}
            assert (
                main(fake.arguments(questions, tmp_path / f"{parallel}", server.url, **more)) == 0
            )
    assert contents(tmp_path / "1") == contents(tmp_path / "8")


@pytest.mark.parametrize("keep", ["shortest", "longest", "random"])
def test_one_right_trace_per_question(keep, tmp_path):
    questions = small(tmp_path, 30)
    with fake.serve(faulty=False) as server:
        argv = fake.arguments(questions, tmp_path / "out", server.url, n=4, keep=keep)
        assert main(argv) == 0
        first = contents(tmp_path / "out")
        assert main([*argv, "--keep", "all"]) == 0  # another choice among the same answers
        assert main(argv) == 0 and contents(tmp_path / "out") == first
    candidates = {}
    for (question, sample), (thinking, _) in fake.expected(fake.rows(30), 4)[0].items():
        candidates.setdefault(question, {})[sample] = thinking
    rows = fake.read(tmp_path / "out" / "traces.jsonl")
    assert [row["question"] for row in rows] == list(candidates)
    lengths = {"shortest": min, "longest": max}
    for row in rows:
        texts = candidates[row["question"]]
        if keep == "random":
            assert row["sample"] in texts
        else:
            best = lengths[keep](map(len, texts.values()))
            assert row["sample"] == min(s for s, t in texts.items() if len(t) == best)
    if keep == "random":
        assert len({row["sample"] for row in rows}) == 4
    others = [
        r for r in fake.read(tmp_path / "out" / "dropped.jsonl") if r["reason"] == "not selected"
    ]
    assert len(others) == sum(map(len, candidates.values())) - len(rows)
    assert all(row["correct"] for row in others)


def test_the_cost_never_exceeds_its_limit(tmp_path, capsys):
    """Every answer is as long as it may be; the limit is raised twice."""
    questions = small(tmp_path, 20)

    def longest(reply):
        return reply | {"usage": {"prompt_tokens": 5, "completion_tokens": 1000}}

    each = (5 * fake.PRICES[0] + 1000 * fake.PRICES[1]) / 1e6
    with fake.serve(change=longest) as server:
        spent = []
        for limit, status in ((0.0001, 1), (10.5 * each, 1), (1.0, 0)):
            more = {"max_tokens": 1000, "max_cost": limit}
            argv = fake.arguments(questions, tmp_path / "out", server.url, **more)
            assert main(argv) == status
            found = json.loads((tmp_path / "out" / "report.json").read_text())
            spent.append(found["cost"])
            assert found["cost"] <= limit
            assert found["cost"] == pytest.approx(len(server.answered) * each)
        assert set(server.answered.values()) == {1}
    # 256 tokens of a template are reserved as well, so less than one answer is left over
    assert spent == pytest.approx([0, 10 * each, 20 * each])
    out = capsys.readouterr().out
    assert "20 of 20 samples were not requested" in out and "10 of 20 samples" in out


def test_usage_that_is_missing(tmp_path):
    """Without a limit it is unknown; with one the run ends, and what was paid for is kept."""
    questions = small(tmp_path, 6)
    with fake.serve(faulty=False, change=lambda r: r | {"usage": None}) as server:
        more = {"max_cost": 1, "endpoint__parallel": 1}
        argv = fake.arguments(questions, tmp_path / "a", server.url, **more)
        assert "max_cost=1.0: the teacher does not report its usage" in line_of(argv)
        assert len(fake.read(tmp_path / "a" / "answers.jsonl")) == len(server.answered) < 6
        assert main(fake.arguments(questions, tmp_path / "b", server.url)) == 0
    rows = fake.read(tmp_path / "b" / "traces.jsonl")
    assert {row["completion_tokens"] for row in rows} == {None}


def test_an_interrupted_run_keeps_what_was_under_way(tmp_path, monkeypatch):
    questions = small(tmp_path, 40)
    shown = []

    def show(self, failures):
        shown.append(1)
        if len(shown) == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr(collect.Progress, "show", show)
    with fake.serve(faulty=False) as server:
        argv = fake.arguments(questions, tmp_path / "out", server.url)
        with pytest.raises(KeyboardInterrupt):
            main(argv)
        stored = fake.read(tmp_path / "out" / "answers.jsonl")
        assert len(stored) == sum(server.answered.values()) < 40
        monkeypatch.undo()
        assert main(argv) == 0
        assert set(server.answered.values()) == {1}


def refuse(status, question="What is 3 + 3?", server=fake.Fake):
    """Answers with a status to one question, to all if it is None."""
    write = server.write

    def broken(self, handler, fault, text):
        is_it = question is None or self.bodies[-1]["messages"][-1]["content"] == question
        if is_it:
            handler.send_response(status)
            handler.end_headers()
            handler.wfile.write(b"no such luck")
        else:
            write(self, handler, fault, text)

    return broken


@pytest.mark.parametrize("status", [400, 503])
def test_a_request_that_fails_for_good(status, tmp_path, monkeypatch):
    questions = small(tmp_path)
    monkeypatch.setattr(fake.Fake, "write", refuse(status))
    with fake.serve(faulty=False) as server:
        more = {"endpoint__parallel": 1, "endpoint__retries": 2}
        argv = fake.arguments(questions, tmp_path / "out", server.url, **more)
        message = line_of(argv)
        assert "1 requests failed (HTTP" in message and "all 11 answers are kept" in message
        assert ("no such luck, 3 times" in message) == (status == 503)
        server.answered.clear()
        assert main([*argv, "--allow_failed", "true"]) == 0
    assert {question for question, _ in server.answered} == {"What is 3 + 3?"}
    (row,) = [r for r in fake.read(tmp_path / "out" / "dropped.jsonl") if r["reason"] == "failed"]
    assert row["question"] == "What is 3 + 3?" and "no such luck" in row["detail"]


def test_a_teacher_that_is_given_up(tmp_path, monkeypatch):
    questions = small(tmp_path, 60)
    for status, words in ((401, "HTTP 401"), (400, "HTTP 400"), (500, "HTTP 500")):
        monkeypatch.setattr(fake.Fake, "write", refuse(status, None))
        with fake.serve(faulty=False) as server:
            more = {"endpoint__parallel": 4, "endpoint__retries": 1, "allow_failed": "true"}
            message = line_of(fake.arguments(questions, tmp_path / f"{status}", server.url, **more))
            assert words in message and "allow_failed" not in message
            assert len(server.arrived) < 20
        assert not (tmp_path / f"{status}" / "traces.jsonl").exists()


def test_questions_without_an_answer_and_repeated_ones(tmp_path):
    rows = [*fake.rows(6), {"question": "What is 2 + 2?"}]
    for row in rows[:3]:
        del row["solution"]
    questions = fake.write_questions(tmp_path / "questions.jsonl", rows)
    with fake.serve(faulty=False) as server:
        assert main(fake.arguments(questions, tmp_path / "out", server.url, n=3)) == 0
        assert len(server.answered) == 18
    _, dropped, _ = fake.expected(rows[:6], 3)
    unknown = {"What is 0 + 0?", "What is 1 + 1?", "What is 2 + 2?"}
    others = fake.read(tmp_path / "out" / "dropped.jsonl")
    assert others[-1]["reason"] == "repeated question" and others[-1]["detail"] == "of question 2"
    graded = {"wrong", "no final answer"}
    expected = {k: r for k, r in dropped.items() if not (k[0] in unknown and r in graded)}
    assert {k: r["reason"] for k, r in by_sample(others[:-1]).items()} == expected
    kept = fake.read(tmp_path / "out" / "traces.jsonl")
    assert {r.get("correct") for r in kept if r["question"] in unknown} == {None}
    assert {r["deepseek_grade"] for r in kept if r["question"] in unknown} == {None}


def test_equal_traces_are_kept_once(tmp_path):
    def same(reply):
        return json.loads(json.dumps(reply)) | {
            "choices": [{"message": {"reasoning": "Hm.", "content": "\\boxed{0}"}}]
        }

    questions = small(tmp_path, 1)
    with fake.serve(faulty=False, change=same) as server:
        assert main(fake.arguments(questions, tmp_path / "out", server.url, n=3)) == 0
    assert len(fake.read(tmp_path / "out" / "traces.jsonl")) == 1
    others = fake.read(tmp_path / "out" / "dropped.jsonl")
    assert [(r["reason"], r["detail"]) for r in others] == [("repeated trace", "of sample 0")] * 2


def test_what_is_requested(tmp_path, monkeypatch):
    questions = small(tmp_path, 1)
    monkeypatch.setenv("TEACHER_KEY", "secret")
    more = {
        "prompt": "{question}", "system": "Be brief.", "max_tokens": 99, "sampling__temperature": 1,
        "endpoint__body": '{"thinking": {"budget_tokens": 40}, "top_p": null}',
        "endpoint__key_variable": "TEACHER_KEY",
    }  # fmt: skip
    with fake.serve(faulty=False) as server:
        assert main(fake.arguments(questions, tmp_path / "out", server.url, **more)) == 0
    assert server.bodies == [
        {
            "model": "fake-r1",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What is 0 + 0?"},
            ],
            "max_tokens": 99,
            "temperature": 1.0,
            "seed": fake.seed_of("What is 0 + 0?", 0),
            "thinking": {"budget_tokens": 40},
        }
    ]
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert "secret" not in "".join(p.read_text() for p in (tmp_path / "out").glob("*.[jy]*"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--questions", "nowhere.jsonl"], ["questions=nowhere.jsonl: no such file"]),
        (["--questions", "aime42"], ["questions=aime42: unknown"]),
        (["--model", ""], ["model='': must name the teacher"]),
        (["--prompt", "Think."], ["prompt='Think.': must contain {question}"]),
        (["--n", "0"], ["n=0: must be 1 or more"]),
        (["--n", "2", "--sampling.temperature", "0"], ["n=2: all samples of greedy decoding"]),
        (["--max_cost", "1", "--price.input", "0", "--price.output", "0"], ["needs prices"]),
        (["--price.input", "-1"], ["price.input=-1.0: must be 0 or more"]),
        (["--endpoint.url", "localhost"], ["endpoint.url=localhost: must begin with http"]),
        (["--endpoint.requests_per_minute", "0"], ["endpoint.requests_per_minute=0.0"]),
        (["--endpoint.key_variable", "NO_SUCH_KEY"], ["endpoint.key_variable=NO_SUCH_KEY"]),
        (["--thinking.max", "5"], ["thinking.max=5: is for the local engine", "--endpoint.body"]),
        (["--sampling.top_k", "5"], ["sampling.top_k=5: is for the local engine"]),
        (["--endpoint.url", "", "--model", "no/where/at/all"], ["no/where/at/all"]),
    ],
)
def test_impossible_settings(more, words, tmp_path):
    argv = [*fake.arguments(small(tmp_path, 1), tmp_path / "out", "http://127.0.0.1:1/v1"), *more]
    message = line_of(argv)
    assert all(word in message for word in words), message


def test_a_folder_of_other_settings_or_content(tmp_path):
    questions = small(tmp_path, 2)
    with fake.serve(faulty=False) as server:
        argv = fake.arguments(questions, tmp_path / "out", server.url)
        assert main(argv) == 0
        message = line_of([*argv, "--sampling.temperature", "1"])
        assert "its answers have sampling.temperature=0.6, now it is 1.0; give the same" in message
        # what no answer depends on may change
        assert main([*argv, "--endpoint.parallel", "2", "--price.input", "3", "--n", "2"]) == 0
        # nor is anything lost where there is no answer yet
        bad = [*argv, "--output", str(tmp_path / "new"), "--endpoint.retries", "0"]
        line_of([*bad, "--endpoint.url", "http://127.0.0.1:1/v1", "--sampling.temperature", "1"])
        assert main([*argv, "--output", str(tmp_path / "new")]) == 0
        other = tmp_path / "thesis"
        other.mkdir()
        (other / "thesis.txt").write_text("mine")
        assert "has no answers of a teacher" in line_of([*argv, "--output", str(other)])
        assert [p.name for p in other.iterdir()] == ["thesis.txt"]


def test_the_output_goes_into_curate_and_train(many, tmp_path):
    """s1's ablation of the longest traces; the selected rows and all traces as training data."""
    tokenizer = engines.tokenizer_folder()
    argv = [
        *("--input", many[1] / "traces.jsonl", "--output", tmp_path / "curated"),
        *("--recipe", "longest", "--size", 50, "--features.tokenizer", tokenizer),
        *("--features.cache", tmp_path / "cache", "--stages.decontamination", "false"),
    ]
    assert curate(list(map(str, argv))) == 0
    selected = fake.read(tmp_path / "curated" / "selected.jsonl")
    traces = by_sample(fake.read(many[1] / "traces.jsonl"))
    assert len({row["question"] for row in selected}) == 50
    for row in selected:
        assert (
            row["thinking_trajectories"]
            == traces[row["question"], row["sample"]]["deepseek_thinking_trajectory"]
        )
    for path in (many[1] / "traces.jsonl", tmp_path / "curated" / "selected.jsonl"):
        name, records = load_records(DataConfig(path=str(path), limit=50))
        assert name == "s1k-1.1"
        ids = encode(records, engines.tokenizer())[3].tokens.tolist()
        text = engines.tokenizer().decode(ids)
        row = fake.read(path)[3]
        for part in ("question", "deepseek_thinking_trajectory", "deepseek_attempt"):
            assert row[part] in text
    # the folder of a curation is a source of questions
    with fake.serve(faulty=False) as server:
        argv = fake.arguments(tmp_path / "curated", tmp_path / "again", server.url, limit=5)
        assert main(argv) == 0
    again = fake.read(tmp_path / "again" / "dropped.jsonl") + fake.read(
        tmp_path / "again" / "traces.jsonl"
    )
    assert {row["question"] for row in again} == {row["question"] for row in selected[:5]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model that ends its thinking and its answer, and an engine on it."""
    folder = tmp_path_factory.mktemp("teacher") / "tiny"
    ids = {"<|im_start|>": 2.0, "<|im_end|>": 4.0, " ": 2.0, "\n": 1.5}
    likes = {engines.encode(text)[0]: amount for text, amount in ids.items()}
    engines.write_model(folder, likes, context=512)
    return folder, engines.open_tiny(folder, **LIMITS)


@pytest.mark.slow
def test_own_engine_and_own_server_give_the_same_traces(tiny, tmp_path, monkeypatch):
    """Greedy, with budgets and a Wait; one engine serves both, one after the other."""
    folder, engine = tiny
    monkeypatch.setattr(LocalEngine, "_open", lambda self: engine)
    rng = random.Random(0)
    rows = [{"question": f"Add {rng.randrange(999)} and {i}."} for i in range(8)]
    questions = fake.write_questions(tmp_path / "questions.jsonl", rows)
    greedy = {"sampling__temperature": 0, "sampling__top_p": 1, "max_tokens": 100}
    limits = {"max": 40, "num_waits": 1, "max_answer_tokens": 24, "min_answer_tokens": 4}
    own = {**greedy, **{f"thinking__{name}": value for name, value in limits.items()}}
    argv = fake.arguments(questions, tmp_path / "engine", "", **own, model=folder)
    assert main(argv) == 0
    names = {"max": "budget_tokens"}
    body = {"thinking": {names.get(name, name): value for name, value in limits.items()}}
    local = Local(engine)
    with bridge(local) as url:
        over = {**greedy, "model": "tiny", "endpoint__body": json.dumps(body)}
        assert main(fake.arguments(questions, tmp_path / "server", url, **over)) == 0
    local.close()
    found = []
    for name in ("engine", "server"):
        folder = tmp_path / name
        rows = fake.read(folder / "traces.jsonl"), fake.read(folder / "dropped.jsonl")
        found.append([[row | {"teacher": ""} for row in part] for part in rows])
    assert found[0] == found[1]
    assert found[0][0] and len(found[0][0]) + len(found[0][1]) == 8
    thinking = [row["deepseek_thinking_trajectory"] for part in found[0] for row in part]
    assert sum("Wait" in text for text in thinking) > 3
