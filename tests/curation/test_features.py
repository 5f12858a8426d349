"""Features computed by tokenizer, grader and models: right, once, resumable, in shards."""

import json
import time

import pytest

from jaxs1.curate import main
from jaxs1.curation.features import parse_subject
from jaxs1.data.grading import final_answer, is_correct
from jaxs1.data.tokenizer import load_tokenizer
from tests.curation.conftest import bare_pool, command, feature_settings, kill, reply, start
from tests.curation.pools import write_jsonl
from tests.curation.server import serve


def run(arguments):
    assert main([str(x) for x in arguments[1:]]) == 0


def selected(folder):
    return (folder / "out" / "selected.jsonl").read_text()


def expected_rows(rows, tokenizer):
    """Row numbers that survive by the rules of `reply` and `bare_pool`, and their features."""
    tokens = load_tokenizer(str(tokenizer))
    for i, row in enumerate(rows):
        if i % 7 and i % 4:
            length = len(tokens(row["thinking_trajectories"][0])["input_ids"])
            features = {"length": length, "correct": bool(i % 3), "subject": ("03", "11")[i % 2]}
            yield i, features | {"solved_small": False, "solved_large": False}


def test_all_features(tmp_path, tokenizer, subjects):
    pool, rows = bare_pool(tmp_path, 60)
    doubled = [*rows, rows[0]]  # a question that comes twice is asked once
    write_jsonl(pool, doubled)
    with serve(reply, delay=0.002) as server:
        more = feature_settings(server.url, tokenizer, subjects, tmp_path)
        run(command(pool, tmp_path, *more, "--stages.diversity", "false"))
        assert set(server.asked.values()) == {1}
        assert len(server.asked) == 60 * 3
        assert 1 < server.most_at_once <= 4
        again = command(pool, tmp_path / "again", *more, "--stages.diversity", "false")
        run(again)
        assert sum(server.asked.values()) == 60 * 3  # everything was in the cache
    kept = [json.loads(line) for line in selected(tmp_path).splitlines()]
    expected = list(expected_rows(rows, tokenizer))
    assert [row["extra"]["kept"] for row in kept] == [i for i, _ in expected]
    for row, (i, features) in zip(kept, expected, strict=True):
        assert {name: row[name] for name in features} == features
        assert {k: row[k] for k in rows[i]} == rows[i]
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert funnel["features"]["subject"] == {
        "computed": 60, "cached": 0, "unusable": 9, "failed": 0, "reason": "", "fatal": False,
    }  # fmt: skip
    assert selected(tmp_path / "again") == selected(tmp_path)


def test_what_the_pool_has_is_not_computed(tmp_path, tokenizer, subjects):
    pool, rows = bare_pool(tmp_path, 12)
    for row in rows[:5]:
        row["subject"] = "11"
    write_jsonl(pool, rows)
    with serve(reply) as server:
        more = feature_settings(server.url, tokenizer, subjects, tmp_path)
        run(command(pool, tmp_path, *more, "--size", 2))
        assert sum(model == "classifier" for model, _ in server.asked) == 7


def test_killed_and_started_again_computes_nothing_twice(tmp_path, subjects):
    n, parallel = 100, 4
    pool, rows = bare_pool(tmp_path, n)
    write_jsonl(pool, [row | {"length": i} for i, row in enumerate(rows)])
    with serve(reply, delay=0.01) as server:
        whole = feature_settings(server.url, None, subjects, tmp_path / "whole", parallel)
        run(command(pool, tmp_path / "whole", *whole, "--size", 30))
    with serve(reply, delay=0.01) as server:
        more = feature_settings(server.url, None, subjects, tmp_path, parallel)
        arguments = command(pool, tmp_path, *more, "--size", 30)
        for until in (n // 2, 2 * n + n // 2):  # in the first and the last model's turn
            process = start(arguments)
            while sum(server.asked.values()) < until and process.poll() is None:
                time.sleep(0.005)
            assert process.poll() is None, process.stderr.read()
            kill(process)
            assert not (tmp_path / "out").exists()
        kept = sum(len(p.read_text().splitlines()) for p in (tmp_path / "cache").rglob("*.jsonl"))
        assert kept > n
        done = start(arguments)
        _, err = done.communicate(timeout=120)
        assert done.returncode == 0, err
        # what was under way when it was killed is asked again, nothing else
        assert len(server.asked) == 3 * n
        assert sum(server.asked.values()) <= 3 * n + 2 * parallel
        assert max(server.asked.values()) <= 2
    assert selected(tmp_path) == selected(tmp_path / "whole")


def test_shards_together_are_the_whole(tmp_path, tokenizer, subjects):
    pool, _ = bare_pool(tmp_path, 80)
    with serve(reply) as server:
        more = feature_settings(server.url, tokenizer, subjects, tmp_path)
        for i in (1, 2, 3):
            run(command(pool, tmp_path, *more, "--shard", f"{i}/3"))
            assert not (tmp_path / "out").exists()
        assert set(server.asked.values()) == {1}
        assert len(server.asked) == 240
        run(command(pool, tmp_path, *more, "--size", 20))
        assert sum(server.asked.values()) == 240
        whole = feature_settings(server.url, tokenizer, subjects, tmp_path / "whole")
        run(command(pool, tmp_path / "whole", *whole, "--size", 20))
    assert selected(tmp_path) == selected(tmp_path / "whole")


def test_a_line_that_was_cut_off_is_computed_again(tmp_path, tokenizer):
    pool, _ = bare_pool(tmp_path, 10)
    more = ["--features.tokenizer", tokenizer, "--features.cache", tmp_path / "cache"]
    shard = command(pool, tmp_path, *more, "--shard", "1/1")
    run(shard)
    (file,) = (tmp_path / "cache").rglob("*.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    run(shard)
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("Subject: 11", "11"),
        ("Subject: 03\nNo:\n**Subject: 11**", "11"),
        ("Subject: **03**", "03"),
        ("Subject: 99", None),
        ("11", None),
        ("Subject:", None),
    ],
)
def test_parse_subject(answer, code):
    assert parse_subject(answer, {"03": "", "11": ""}) == code


@pytest.mark.parametrize(
    ("answer", "solution", "correct"),
    [
        (r"so \boxed{\frac{1}{2}}", "thus $\\boxed{0.5}$", True),
        (r"\boxed{\text{18}}", "steps\n#### 18", True),
        ("Final.\nAnswer: C", "C", True),
        (r"first \boxed{3}, no: \boxed{4}", r"\boxed{3}", False),
        (r"\boxed{x+1}", r"\boxed{1+x}", True),
        ("no\nanswer", "4", False),
        (r"\boxed{4}", "a proof\nof two lines", None),
    ],
)
def test_grading(answer, solution, correct):
    assert is_correct(answer, solution) is correct


def test_final_answer_of_nested_braces():
    assert final_answer(r"\boxed{\frac{1}{2}} and \boxed{\left\{ a_{1} \right\}}.") == (
        r"\left\{ a_{1} \right\}"
    )
