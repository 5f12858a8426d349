"""The command as a whole: its files, the same everywhere, and food for jaxs1.train."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from jaxs1.curate import main
from jaxs1.curation.pool import Pool, write_rows
from tests.curation.conftest import command
from tests.curation.pools import planted_pool, write_benchmarks, write_jsonl

SIZE = 100
BLANK = (None, " ", [], [""])


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    rows, _ = planted_pool(2000)
    on = ["--stages.decontamination", "true", "--benchmarks"]
    return (
        write_jsonl(folder / "pool.jsonl", rows),
        rows,
        [*on, json.dumps(write_benchmarks(folder)), "--size", SIZE, "--uniform_until", 70],
    )


def curate(pool, folder, *more):
    path, _, settings = pool
    assert main([str(x) for x in command(path, folder, *settings, *more)[1:]]) == 0
    return folder / "out"


def read(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_files(pool, tmp_path):
    _, rows, _ = pool
    out = curate(pool, tmp_path)
    assert {p.name for p in out.iterdir()} == {
        "selected.jsonl", "funnel.json", "report.md", "funnel.png", "distributions.png",
        "dropped.parquet", "config.yaml",
    }  # fmt: skip
    assert not list(tmp_path.glob("*.partial"))
    selected, dropped = read(out / "selected.jsonl"), read(out / "dropped.parquet")
    assert len(selected) == SIZE
    assert len(selected) + len(dropped) == len(rows)
    assert {row["extra"]["kept"] + 1 for row in selected} | {d["row"] for d in dropped} == set(
        range(1, len(rows) + 1)
    )
    for row in selected:
        assert {k: row[k] for k in row.keys() - {"qhash"}} == rows[row["extra"]["kept"]]
    funnel = json.loads((out / "funnel.json").read_text())
    assert funnel["read"] == len(rows) and funnel["selected"] == SIZE and funnel["seed"] == 0
    for stage in funnel["stages"]:
        of_stage = [d["reason"] for d in dropped if d["stage"] == stage["name"]]
        assert len(of_stage) == stage["dropped"]
        assert {r: of_stage.count(r) for r in set(of_stage)} == stage["reasons"]
    report = (out / "report.md").read_text()
    for heading in ("Funnel", "Trace lengths", "Subjects", "Sources", "longest", "shortest"):
        assert heading in report
    by_length = sorted(row["length"] for row in selected)
    for length in (by_length[0], by_length[9], by_length[-1], by_length[-10]):
        assert f"| {length:,} | `" in report
    assert all((out / f"{p}.png").read_bytes()[1:4] == b"PNG" for p in ("funnel", "distributions"))
    assert yaml.safe_load((out / "config.yaml").read_text())["size"] == SIZE


@pytest.mark.slow
def test_same_in_another_process_and_from_parquet(pool, tmp_path, run_module):
    path, rows, settings = pool
    first = curate(pool, tmp_path)
    settings = [*settings, "--seed", 0]
    done = run_module(*command(path, tmp_path / "b", *settings), PYTHONHASHSEED="7")
    assert done.returncode == 0, done.stderr
    for name in ("selected.jsonl", "funnel.json", "report.md"):
        assert (first / name).read_bytes() == (tmp_path / "b" / "out" / name).read_bytes()
    write_rows(rows, tmp_path / "pool.parquet", "parquet")
    parquet = (tmp_path / "pool.parquet", rows, settings)
    out = curate(parquet, tmp_path / "c", "--format", "parquet")
    assert read(out / "selected.parquet") == read(first / "selected.jsonl")
    other = curate(pool, tmp_path / "d", "--seed", "1")
    assert (other / "selected.jsonl").read_bytes() != (first / "selected.jsonl").read_bytes()


def test_config_yaml_repeats_the_run(pool, tmp_path):
    first = curate(pool, tmp_path, "--seed", 3)
    again = ["--config", str(first / "config.yaml"), "--output", str(tmp_path / "again")]
    assert main(again) == 0
    name = "selected.jsonl"
    assert (first / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("recipe", ["random", "longest", "diverse", "all"])
def test_ablations(recipe, pool, tmp_path):
    _, rows, _ = pool
    out = curate(pool, tmp_path, "--recipe", recipe)
    selected = read(out / "selected.jsonl")
    stages = {s["name"]: s for s in json.loads((out / "funnel.json").read_text())["stages"]}
    assert "difficulty" not in stages
    assert any(row["solved_large"] for row in selected)
    if recipe == "all":
        assert len(selected) == stages["missing"]["kept"] > 1700
    else:
        assert len(selected) == SIZE
    if recipe == "longest":
        dropped = {d["row"] for d in read(out / "dropped.parquet") if d["stage"] == "diversity"}
        assert min(r["length"] for r in selected) >= max(rows[i - 1]["length"] for i in dropped)


@pytest.mark.parametrize("recipe", ["random", "all"])
def test_ablations_that_need_no_feature_ask_for_none(recipe, pool, tmp_path):
    _, rows, settings = pool
    names = ("question", "source_type", "thinking_trajectories", "attempt")
    path = write_jsonl(tmp_path / "bare.jsonl", [{k: row[k] for k in names} for row in rows])
    out = curate((path, rows, settings), tmp_path, "--recipe", recipe)
    stages = {s["name"]: s for s in json.loads((out / "funnel.json").read_text())["stages"]}
    assert set(stages["missing"]["reasons"]) <= {f"{name} is missing" for name in names}
    planted = planted_pool(len(rows))[1]
    blank = {i for i in planted["missing"] if any(rows[i][k] in BLANK for k in names)}
    assert 0 < len(blank) < len(planted["missing"])
    left = len(rows) - len(planted["duplicates"] | planted["decontamination"] | blank)
    assert len(read(out / "selected.jsonl")) == (SIZE if recipe == "random" else left)
    assert "## Subjects" in (out / "report.md").read_text()


def test_renamed_columns(pool, tmp_path):
    _, rows, settings = pool
    names = {"subject": "domain", "length": "gemini_length"}
    renamed = [{names.get(k, k): v for k, v in row.items()} for row in rows]
    path = write_jsonl(tmp_path / "renamed.jsonl", renamed)
    first = curate(pool, tmp_path / "a")
    out = curate((path, rows, settings), tmp_path / "b", "--columns", json.dumps(names))
    assert [r["qhash"] for r in read(out / "selected.jsonl")] == [
        r["qhash"] for r in read(first / "selected.jsonl")
    ]
    assert all(r["subject"] == r["domain"] for r in read(out / "selected.jsonl"))


def test_pool_reads_the_same_rows_from_jsonl_and_parquet(pool, tmp_path):
    path, rows, _ = pool
    write_rows(rows, tmp_path / "pool.parquet", "parquet")
    chosen = np.array([0, 1023, 1024, 1500, 1999])
    for file in (path, tmp_path / "pool.parquet"):
        opened = Pool(str(file))
        assert dict(opened.take(chosen)) == {i: rows[i] for i in chosen.tolist()}
        batches = opened.batches(["question", "length", "nothing"])
        assert [values for _, batch in batches for values in batch] == [
            (row["question"], row["length"], None) for row in rows
        ]


@pytest.mark.slow
def test_selected_rows_train(pool, tmp_path, tokenizer, run_module):
    out = curate(pool, tmp_path)
    done = run_module(
        "jaxs1.train",
        *("--config", "configs/tiny.yaml"),
        *("--data.path", out / "selected.jsonl"),
        *("--tokenizer", tokenizer),
        *("--output", tmp_path / "run"),
        *("--steps", 2),
    )
    assert done.returncode == 0, done.stderr
    assert f"{SIZE} s1k examples" in done.stdout
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
