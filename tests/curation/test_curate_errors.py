"""Whatever is wrong with pool, settings or endpoint: one line, and what was computed is kept."""

import json
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxs1.config import UserError
from jaxs1.curate import main, open_model
from jaxs1.curation.labelers import ModelConfig
from jaxs1.curation.pool import write_rows
from jaxs1.inference.interface import answer_all
from tests.curation.conftest import bare_pool, command, feature_settings, reply
from tests.curation.pools import planted_pool, write_benchmarks, write_jsonl
from tests.curation.server import number_of, serve


def line_of(arguments):
    with pytest.raises(UserError) as caught:
        main([str(x) for x in arguments[1:]])
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def full_pool(tmp_path):
    return write_jsonl(tmp_path / "full.jsonl", planted_pool(400)[0])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"question": "q"}\n{"question": "\xff"}\n', ["bad.jsonl:2", "not UTF-8"]),
        (
            b'{"question": "q"}\n{"question": "q',
            ["bad.jsonl:2", "not valid JSON", "remove the line"],
        ),
        (b"", ["bad.jsonl: holds no rows"]),
        (b"\n\n", ["bad.jsonl: holds no rows"]),
        (b'["a list"]\n', ["bad.jsonl:1", "must be a JSON object"]),
        (b'{"question": 7}\n', ["bad.jsonl:1", "column 'question' must be a string", "7"]),
        (b"PAR1 and no more", ["bad.jsonl", "not a readable Parquet file"]),
    ],
)
def test_broken_pool(content, words, tmp_path):
    pool = tmp_path / "bad.jsonl"
    pool.write_bytes(content)
    off = ["missing", "format", "difficulty", "seeds", "diversity"]
    more = [x for name in off for x in (f"--stages.{name}", "false")]
    message = line_of(command(pool, tmp_path, *more))
    assert all(word in message for word in words), message
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("length", -1, ["from 0 to"]),
        ("length", "long", ["whole number", "'long'"]),
        ("length", float("inf"), ["whole number", "inf"]),
        ("length", 1.5, ["whole number", "1.5"]),
        ("correct", "yes", ["true or false", "'yes'"]),
        ("subject", 11, ["string", "11"]),
        ("thinking_trajectories", {"a": 1}, ["string"]),
    ],
)
def test_value_of_the_wrong_kind(column, value, words, tmp_path):
    rows = planted_pool(30)[0]
    rows[4] |= {column: value}
    message = line_of(command(write_jsonl(tmp_path / "pool.jsonl", rows), tmp_path))
    assert f"pool.jsonl:5: column '{column}'" in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--size", 399], ["size=399: only", "rows are left", "difficulty", "lower --size"]),
        (["--size", 2], ["size=2:", "rows are seeds", "--stages.seeds false"]),
        (["--input", "nowhere.jsonl"], ["input=nowhere.jsonl: no such file"]),
        (["--input", "."], ["input=.: is a folder"]),
        (["--stages.decontamination", "true"], ["benchmarks={}", "at least one file"]),
        (["--stages.decontamination", "true", "--benchmarks", '{"no.jsonl": "x"}'], ["no.jsonl"]),
        (["--stages.missing", "false", "--size", 10], ["rows have no", "leave the stage on"]),
        (["--columns", '{"subject": "domain"}'], ["columns.subject=domain", "has only"]),
        (["--columns", '{"topic": "domain"}'], ["columns.topic: no stage reads"]),
        (["--shard", "3/2"], ["shard=3/2: must be i/n"]),
        (["--shard", "1/2", "--ray", 2], ["ray=2: makes shards itself"]),
        (["--ray", -1], ["ray=-1: must be 0 or more"]),
        (["--shard", "1/2"], ["shard=1/2: there is nothing to compute"]),
        (["--solved", "[]"], ["solved=[]"]),
        (["--subjects", "nowhere.json"], ["subjects=nowhere.json", "cannot be read"]),
        (["--recipe", "best"], ["recipe=best"]),
        (["--features.small.url", "localhost"], ["features.small.url=localhost", "http://"]),
        (["--features.small.url", "http://x"], ["features.small.model=''"]),
        (
            ["--features.small.url", "http://x", "--features.small.model", "m"]
            + ["--features.small.key_variable", "NO_SUCH_KEY"],
            ["features.small.key_variable=NO_SUCH_KEY", "set it"],
        ),
        (
            ["--features.classifier.url", "http://x", "--features.classifier.model", "m"],
            ["subjects=null"],
        ),
        (["--stages.difficultyy", "false"], ["did you mean stages.difficulty?"]),
    ],
)
def test_impossible_setting(more, words, full_pool, tmp_path):
    message = line_of(command(full_pool, tmp_path, *more))
    assert all(word in message for word in words), message


def test_missing_column_is_named_with_its_stage_and_remedy(tmp_path):
    pool, _ = bare_pool(tmp_path, 5)
    message = line_of(command(pool, tmp_path))
    assert "column 'solved_small' is missing, which stage difficulty needs" in message
    assert "--features.small.model MODEL" in message
    message = line_of(command(pool, tmp_path, "--stages.difficulty", "false"))
    assert "column 'length' is missing, which stage seeds needs" in message
    assert "--features.tokenizer" in message
    short = write_jsonl(tmp_path / "short.jsonl", [{"question": "q"}])
    message = line_of(command(short, tmp_path, "--features.grade", "true"))
    assert "column 'attempt' is missing, which feature correct needs" in message
    message = line_of(command(short, tmp_path))
    assert "column 'thinking_trajectories' is missing, which stage missing needs" in message


def test_unknown_subject_is_named(full_pool, subjects, tmp_path):
    message = line_of(command(full_pool, tmp_path, "--subjects", subjects))
    assert "full.jsonl:" in message and "is none of the 2 codes" in message


def test_benchmark_column_that_is_not_there(full_pool, tmp_path):
    (jsonl, *_) = write_benchmarks(tmp_path)
    parquet, empty = tmp_path / "first.parquet", tmp_path / "empty.parquet"
    write_rows([{"problem": "p"}], parquet, "parquet")
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), empty)
    number = write_jsonl(tmp_path / "number.jsonl", [{"prompt": 7}])
    for file, words in [
        (jsonl, f"benchmarks: {jsonl} has no column 'prompt', only problem"),
        (parquet, f"benchmarks: {parquet} has no column 'prompt', only problem"),
        (empty, f"benchmarks={empty}: holds no rows"),
        (number, "number.jsonl:1: column 'prompt' must hold a benchmark question as a string"),
    ]:
        on = ["--stages.decontamination", "true", "--benchmarks", json.dumps({str(file): "prompt"})]
        assert words in line_of(command(full_pool, tmp_path, *on))


def test_used_output_is_refused_and_foreign_partial_is_kept(full_pool, tmp_path):
    foreign = tmp_path / "out.partial" / "thesis.txt"
    foreign.parent.mkdir()
    foreign.write_text("mine")
    assert "out.partial contains something else; move or delete it" in line_of(
        command(full_pool, tmp_path, "--size", 20)
    )
    assert foreign.read_text() == "mine"
    (tmp_path / "out").mkdir()
    assert "exists already" in line_of(command(full_pool, tmp_path))


BROKEN = {
    "500": ((500, "oops"), "HTTP 500 Internal Server Error: oops, 3 times"),
    "nonsense": ((200, "<html>"), "a reply that is no completion (b'<html>'), 3 times"),
    "no choices": ((200, '{"choices": []}'), "a reply that is no completion"),
    "no text": ("  ", "a completion without text, 3 times"),
    "nothing": ((200, ""), "an empty reply, 3 times"),
    "no such model": ((404, "unknown"), "HTTP 404 Not Found"),
    "no key": ((401, "who?"), "HTTP 401 Unauthorized"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_endpoint_that_breaks_down_loses_nothing(kind, tmp_path, tokenizer, subjects):
    pool, _ = bare_pool(tmp_path, 40)
    broken, words = BROKEN[kind]
    healthy = [False]

    def sometimes(prompt):
        return reply(prompt) if healthy[0] or number_of(prompt) < 20 else broken

    with serve(sometimes) as server:
        more = feature_settings(server.url, tokenizer, subjects, tmp_path)
        message = line_of(command(pool, tmp_path, *more, "--size", 5))
        assert words in message, message
        assert "unanswered by classifier at http://127.0.0.1" in message
        assert "values are kept in" in message and "repeat the command" in message
        assert len(server.asked) < 40  # it gave up early
        kept = [
            json.loads(line)["key"]
            for path in (tmp_path / "cache").glob("subject-*/*.jsonl")
            for line in path.read_text().splitlines()
        ]
        assert len(kept) == len(set(kept)) == 20
        healthy[0] = True
        server.asked.clear()
        assert main([str(x) for x in command(pool, tmp_path, *more, "--size", 5)[1:]]) == 0
        assert sum(model == "classifier" for model, _ in server.asked) == 20


def test_endpoint_that_is_not_there(tmp_path, tokenizer, subjects):
    pool, _ = bare_pool(tmp_path, 10)
    with serve(reply) as server:
        url = server.url
    more = feature_settings(url, tokenizer, subjects, tmp_path)
    assert "Connection refused, 3 times" in line_of(command(pool, tmp_path, *more))


def test_failures_of_single_questions(tmp_path, tokenizer, subjects):
    """Transient ones are tried again; lasting ones are counted and, if allowed, dropped."""
    pool, _ = bare_pool(tmp_path, 40)
    tries = {}

    def flaky(prompt):
        tries[prompt] = tries.get(prompt, 0) + 1
        if number_of(prompt) == 5:
            return 400, "too long"
        if number_of(prompt) % 5 == 1 and tries[prompt] == 1:
            return 429, "slow down"
        return reply(prompt)

    with serve(flaky) as server:
        more = feature_settings(server.url, tokenizer, subjects, tmp_path, parallel=2)
        arguments = command(pool, tmp_path, *more, "--size", 5)
        message = line_of(arguments)
        assert "feature subject: 1 unanswered by classifier" in message
        assert "(HTTP 400 Bad Request: too long)" in message
        assert "--features.allow_failed true" in message
        assert main([str(x) for x in [*arguments, "--features.allow_failed", "true"][1:]]) == 0
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert [f["failed"] for f in funnel["features"].values()] == [0, 0, 1, 1, 1]
    missing = next(s for s in funnel["stages"] if s["name"] == "missing")
    assert (
        missing["reasons"]["subject is missing"]
        + missing["reasons"].get("solved_small is missing", 0)
        == 1 + 6
    )  # question 5, and six subjects that nobody could read


@pytest.mark.parametrize("parallel", [1, 4])
def test_many_refused_questions_in_a_row(parallel, tmp_path, subjects):
    """They do not end the work, unless no question was ever answered."""
    pool, _ = bare_pool(tmp_path, 40)
    refused = range(10, 30)

    def picky(prompt):
        return (400, "too long") if number_of(prompt) in refused else reply(prompt)

    with serve(picky) as server:
        more = feature_settings(server.url, None, subjects, tmp_path, parallel)
        shard = command(pool, tmp_path, *more, "--shard", "1/1", "--features.allow_failed", "true")
        assert main([str(x) for x in shard[1:]]) == 0
        assert len(server.asked) == 3 * 40
        refused = range(40)
        server.asked.clear()
        elsewhere = feature_settings(server.url, None, subjects, tmp_path / "other", parallel)
        message = line_of([*shard, *elsewhere])
        assert "HTTP 400" in message and "allow_failed" not in message
        assert len(server.asked) < 10


def test_damaged_pool_in_the_middle_keeps_answers(tmp_path, tokenizer, subjects):
    pool, _ = bare_pool(tmp_path, 1500)
    lines = pool.read_text().splitlines(keepends=True)
    pool.write_text("".join(lines[:1200]) + lines[1200][:30])
    settings = ["--features.cache", tmp_path / "cache", "--subjects", subjects]
    with serve(reply) as server:
        model = ["--features.classifier.url", server.url, "--features.classifier.model", "m"]
        message = line_of(command(pool, tmp_path, *settings, *model, "--shard", "1/1"))
    assert "pool.jsonl:1201: is not valid JSON" in message
    (file,) = (tmp_path / "cache").rglob("*.jsonl")
    assert len(file.read_text().splitlines()) == len(server.asked) == 1024


def test_interrupted_while_a_request_waits_for_its_next_try():
    def prompts():
        yield "1", "Question 1"
        while not server.asked:
            time.sleep(0.01)
        raise KeyboardInterrupt

    with serve(lambda _: (500, "")) as server:
        model = open_model(ModelConfig(url=server.url, model="m", backoff=60))
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            list(answer_all(model, prompts()))
    assert time.monotonic() - start < 20
    assert sum(server.asked.values()) == 1


def test_ray_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    pool, _ = bare_pool(tmp_path, 3)
    message = line_of(command(pool, tmp_path, "--features.grade", "true", "--ray", 3,
                              "--recipe", "random"))  # fmt: skip
    assert message == "ray=3: needs the package ray; pip install ray"


def test_command_line_prints_one_line(tmp_path, run_module):
    done = run_module(*command(tmp_path / "nowhere.jsonl", tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: input=") and done.stderr.count("\n") == 1
