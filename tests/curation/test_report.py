"""The report of a small curation: funnel.json, tables, escaped text."""

import json

import numpy as np
import pytest

from jaxs1.curation.decontaminate import Benchmarks
from jaxs1.curation.features import FeatureStats
from jaxs1.curation.pool import Pool
from jaxs1.curation.recipe import Recipe, select
from jaxs1.curation.report import CurationResult, funnel, write_report
from jaxs1.curation.table import COLUMNS, ScanConfig, read_table
from tests.curation.pools import planted_pool, write_jsonl
from tests.curation.test_table import FAMILIES

STAGES = ("duplicates", "missing", "format", "difficulty", "seeds", "diversity")


@pytest.fixture
def result(tmp_path):
    rows, _ = planted_pool(300)
    path = write_jsonl(tmp_path / "pool.jsonl", rows)
    scan = ScanConfig(tuple(COLUMNS), Benchmarks({}), FAMILIES)
    table = read_table(Pool(str(path)), scan, {})
    recipe = Recipe("s1k", STAGES, ("solved_small", "solved_large"), 30, 20, 5600, 0)
    stats = {"length": FeatureStats(computed=5, cached=2, failed=1, reason="HTTP 500")}
    settings = {"input": "pool.jsonl", "seed": 0}
    return CurationResult(settings, table, select(table, recipe), stats, {"11": "Numbers (primes)"})


def test_funnel(result):
    found = funnel(result)
    assert json.loads(json.dumps(found)) == found
    assert (found["read"], found["selected"], found["seed"]) == (300, 30, 0)
    assert [stage["name"] for stage in found["stages"]] == [s for s in STAGES if s != "seeds"]
    left = 300
    for stage in found["stages"]:
        left -= stage["dropped"]
        assert stage["kept"] == left and sum(stage["reasons"].values()) == stage["dropped"]
    assert found["features"]["length"]["cached"] == 2


def test_extremes_are_ordered_by_length(result):
    extremes = result.extremes()
    lengths = result.table.length_N
    selected = sorted(lengths[result.chosen.selected_N].tolist())
    assert lengths[extremes["longest"]].tolist() == selected[::-1][:10]
    assert lengths[extremes["shortest"]].tolist() == selected[:10]


def test_files_and_escaping(result, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    positions = {i for rows in result.extremes().values() for i in rows}
    questions = dict.fromkeys(positions, "a | b\n![x](y) <b> $z$ \ud83d")
    write_report(result, questions, out)
    names = {"funnel.json", "report.md", "funnel.png", "distributions.png"}
    assert {path.name for path in out.iterdir()} == names
    report = (out / "report.md").read_text()
    assert r"a \| b \!\[x](y) \<b> \$z\$ ?" in report
    assert "| length | 5 | 2 | 0 | 1 |" in report and "11: Numbers (primes)" in report
    assert f"Always selected (seeds): {result.chosen.seeds}" in report


def test_a_pool_without_subjects_and_lengths(tmp_path):
    rows = [{"question": f"q{i}", "thinking_trajectories": ["t"], "attempt": "a"} for i in range(9)]
    path = write_jsonl(tmp_path / "pool.jsonl", rows)
    names = ("question", "thinking_trajectories", "attempt")
    table = read_table(Pool(str(path)), ScanConfig(names, Benchmarks({}), FAMILIES), {})
    recipe = Recipe("all", ("duplicates",), (), 1, 0, 0, 0)
    plain = CurationResult({}, table, select(table, recipe), {}, {})
    assert plain.extremes() == {"longest": [], "shortest": []}
    write_report(plain, {}, tmp_path)
    assert (
        np.all(plain.chosen.selected_N)
        and "# 9 questions to 9" in (tmp_path / "report.md").read_text()
    )
