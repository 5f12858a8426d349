"""Features computed by tokenizer, grader and models: right, once, resumable, in shards."""

import json
import shutil
import time

import pytest

from jaxs1.curate import main
from jaxs1.curation.features import length_feature, parse_subject
from jaxs1.data.tokenizer import load_tokenizer, train_tokenizer
from jaxs1.tasks.graders import final_answer, is_correct
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


def test_a_question_that_cannot_be_graded_is_not_asked(tmp_path, subjects):
    pool, rows = bare_pool(tmp_path, 12)
    for row in rows[:5]:
        row["solution"] = "A proof.\nIt is of two lines."
    write_jsonl(pool, [row | {"length": 7} for row in rows])
    with serve(reply) as server:
        more = feature_settings(server.url, None, subjects, tmp_path)
        run(command(pool, tmp_path, *more, "--size", 2))
        assert sum(model == "small" for model, _ in server.asked) == 7
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert funnel["features"]["solved_small"]["unusable"] == 5
    assert funnel["features"]["solved_small"]["computed"] == 12


@pytest.mark.slow
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


@pytest.mark.slow
def test_on_ray_as_here(tmp_path, tokenizer, subjects):
    pytest.importorskip("ray")
    pool, _ = bare_pool(tmp_path, 40)
    with serve(reply) as server:
        more = feature_settings(server.url, tokenizer, subjects, tmp_path)
        done = start(command(pool, tmp_path, *more, "--size", 10, "--ray", 2))
        out, err = done.communicate(timeout=300)
        assert done.returncode == 0, err
        assert set(server.asked.values()) == {1} and len(server.asked) == 120
        assert "subject          0 computed, 40 in the cache" in out
        here = feature_settings(server.url, tokenizer, subjects, tmp_path / "here")
        run(command(pool, tmp_path / "here", *here, "--size", 10))
    assert selected(tmp_path) == selected(tmp_path / "here")
    assert {p.name for p in (tmp_path / "cache").rglob("*.jsonl")} >= {
        "1-of-2.jsonl",
        "2-of-2.jsonl",
    }
    # what a task has to tell the user is one line here
    pool.write_text(pool.read_text() + "{")
    done = start(command(pool, tmp_path / "broken", *more, "--ray", 2))
    _, err = done.communicate(timeout=300)
    assert done.returncode == 2
    assert err.splitlines()[-1].startswith(f"error: {pool}:41: is not valid JSON")


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


def test_another_tokenizer_in_the_same_folder_is_another_cache(tmp_path, tokenizer):
    folder = tmp_path / "tokenizer"
    shutil.copytree(tokenizer, folder)
    features = [length_feature(load_tokenizer(str(path))) for path in (tokenizer, folder)]
    train_tokenizer(["other texts, other words " * 3], folder)
    features.append(length_feature(load_tokenizer(str(folder))))
    first, copied, other = (feature.cache_folder(tmp_path) for feature in features)
    assert first == copied != other


def test_half_a_surrogate_pair_and_a_row_without_a_column(tmp_path, tokenizer):
    """Neither ends the work; the second has nothing to be graded against."""
    pool, rows = bare_pool(tmp_path, 6)
    rows[1]["thinking_trajectories"] = ["thinking \ud83d about"]
    del rows[2]["solution"]
    write_jsonl(pool, rows)
    more = ["--features.tokenizer", tokenizer, "--features.grade", "true", "--recipe", "random"]
    more += ["--features.cache", tmp_path / "cache", "--stages.missing", "false", "--size", 6]
    run(command(pool, tmp_path, *more))
    kept = [json.loads(line) for line in selected(tmp_path).splitlines()]
    assert [row["correct"] for row in kept] == [False, True, None, False, True, True]
    tokens = load_tokenizer(str(tokenizer))
    assert kept[1]["length"] == len(tokens("thinking ? about")["input_ids"])


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
