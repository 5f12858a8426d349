"""Every stage drops exactly what was planted; an independent implementation selects the same."""

import pytest

from jaxs1.curate import CurateConfig, StagesConfig
from jaxs1.curation.decontaminate import read_benchmarks
from jaxs1.curation.pool import Pool
from jaxs1.curation.recipe import select
from jaxs1.curation.table import COLUMNS, ScanConfig, read_table
from tests.curation.pools import oracle_filter, oracle_select, planted_pool, write_benchmarks
from tests.curation.pools import write_jsonl as write

pytestmark = pytest.mark.slow

ROWS = 59_000
FAMILIES = {"aime": ["AIME"], "gpqa": ["Idavidrein/gpqa"], "math": ["qfq/openaimath"]}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Rows, what each stage must drop, and the table that was read from their file."""
    folder = tmp_path_factory.mktemp("planted")
    rows, expected = planted_pool(ROWS)
    path = write(folder / "pool.jsonl", rows)
    scan = ScanConfig(tuple(COLUMNS), read_benchmarks(write_benchmarks(folder)), FAMILIES)
    return rows, expected, read_table(Pool(str(path)), scan, {})


def config(**settings):
    return CurateConfig(input="planted", benchmarks={"x": "y"}, **settings)


def test_each_stage_drops_exactly_the_planted_rows(planted):
    _, expected, table = planted
    found = select(table, config().rules)
    dropped = {s.name: set(s.row_D.tolist()) for s in found.stages}
    for stage, planted_rows in expected.items():
        assert len(planted_rows) >= ROWS // 100
        assert dropped[stage] == planted_rows, stage
    assert [s.kept for s in found.stages][-1] == 1000
    reasons = {s.name: s.counts() for s in found.stages}
    for stage in expected:
        assert sum(reasons[stage].values()) == len(expected[stage])
    assert len(reasons["missing"]) == len(COLUMNS)  # each of them was planted
    assert len(reasons["format"]) == 4
    assert len(reasons["decontamination"]) == 2


def test_independent_implementation_selects_the_same_for_20_seeds(planted):
    rows, _, table = planted
    kept, dropped = oracle_filter(rows)
    found = select(table, config().rules)
    assert {s.name: set(s.row_D.tolist()) for s in found.stages[:-1]} == dropped
    assert 100 < found.seeds < 700
    different = set()
    for seed in range(20):
        found = select(table, config(seed=seed).rules)
        selected = set(found.selected_N.nonzero()[0].tolist())
        assert selected == oracle_select(rows, kept, seed), seed
        different.add(frozenset(selected))
    assert len(different) == 20


@pytest.mark.parametrize("stage", ["duplicates", "decontamination", "format", "difficulty"])
def test_a_stage_can_be_switched_off(stage, planted):
    rows, expected, table = planted
    found = select(table, config(size=2000, stages=StagesConfig(**{stage: False})).rules)
    dropped = {s.name: set(s.row_D.tolist()) for s in found.stages[:-1]}
    assert stage not in dropped
    for other in expected.keys() - {stage, "difficulty"}:
        assert dropped[other] == expected[other]
    solved = {i for i in expected[stage] if rows[i]["solved_small"] or rows[i]["solved_large"]}
    assert expected[stage] & set().union(*dropped.values()) == (
        set() if stage == "difficulty" else solved
    )


def test_seeds_and_diversity_can_be_switched_off(planted):
    _, _, table = planted
    assert select(table, config(stages=StagesConfig(seeds=False)).rules).seeds == 0
    found = select(table, config(stages=StagesConfig(diversity=False)).rules)
    assert found.stages[-1].name == "difficulty"
    assert found.selected_N.sum() == found.stages[-1].kept > 1000
