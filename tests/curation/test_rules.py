"""Every stage drops exactly what was planted; an independent implementation selects the same."""

import json

import pytest

from jaxs1.curate import CurateConfig, StagesConfig
from jaxs1.curation.decontaminate import Benchmarks, read_benchmarks
from jaxs1.curation.pool import Pool
from jaxs1.curation.recipe import select
from jaxs1.curation.table import COLUMNS, ScanConfig, find_defect, question_key, read_table
from tests.curation.pools import oracle_filter, oracle_select, planted_pool, write_benchmarks
from tests.curation.pools import write_jsonl as write

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
    result = select(table, config().rules)
    dropped = {s.name: set(s.row_D.tolist()) for s in result.stages}
    for stage, planted_rows in expected.items():
        assert len(planted_rows) >= ROWS // 100
        assert dropped[stage] == planted_rows, stage
    assert [s.kept for s in result.stages][-1] == 1000
    reasons = {s.name: s.counts() for s in result.stages}
    for stage in expected:
        assert sum(reasons[stage].values()) == len(expected[stage])
    assert len(reasons["missing"]) == len(COLUMNS)  # each of them was planted
    assert len(reasons["format"]) == 4
    assert len(reasons["decontamination"]) == 2


def test_independent_implementation_selects_the_same_for_20_seeds(planted):
    rows, _, table = planted
    kept, dropped = oracle_filter(rows)
    result = select(table, config().rules)
    assert {s.name: set(s.row_D.tolist()) for s in result.stages[:-1]} == dropped
    assert 100 < result.seeds < 700
    different = set()
    for seed in range(20):
        result = select(table, config(seed=seed).rules)
        selected = set(result.selected_N.nonzero()[0].tolist())
        assert selected == oracle_select(rows, kept, seed), seed
        different.add(frozenset(selected))
    assert len(different) == 20


@pytest.mark.parametrize("stage", ["duplicates", "decontamination", "format", "difficulty"])
def test_a_stage_can_be_switched_off(stage, planted):
    rows, expected, table = planted
    result = select(table, config(size=2000, stages=StagesConfig(**{stage: False})).rules)
    dropped = {s.name: set(s.row_D.tolist()) for s in result.stages[:-1]}
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
    result = select(table, config(stages=StagesConfig(diversity=False)).rules)
    assert result.stages[-1].name == "difficulty"
    assert result.selected_N.sum() == result.stages[-1].kept > 1000


@pytest.mark.parametrize(
    ("question", "aime", "damaged"),
    [
        ("see [asy]", False, True),
        ("see [asy]", True, False),
        ("see [asy] and ![Image]", True, True),
        ("p1.", False, True),
        ("Step999.", False, True),
        ("p0. p1000. p07. p12 .", False, False),
        ("**1**", False, True),
        ("**a** and 1 **b**", False, True),  # **a** has no digit, but one follows in its line
        ("**a** and\n1", False, False),
        ("** 1 **", False, False),
    ],
)
def test_format_rules(question, aime, damaged):
    assert (find_defect(question, aime) >= 0) == damaged


def test_question_key_is_s1s(shared_data):
    lines = (shared_data / "s1k_questions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    same = sum(question_key(row["question"]) == row["qhash"] for row in rows)
    assert (same, len(rows)) == (859, 893)  # 34 texts of that file were cleaned after hashing


def test_decontamination_finds_every_planted_overlap_and_no_other(shared_data):
    """One run of 8 words of every benchmark question is planted, altered where the rule says so."""
    files = {
        "math500/test.jsonl": "problem",
        "aime/aime24.jsonl": "problem",
        "aime/aime25.jsonl": "problem",
        "gsm8k/test.jsonl": "question",
    }
    benchmarks = read_benchmarks({str(shared_data / k): v for k, v in files.items()})
    grams, planted, clean = set(), [], []
    for name, column in files.items():
        for line in (shared_data / name).read_text().splitlines():
            words = json.loads(line)[column].lower().split()
            grams |= runs(" ".join(words))
            if len(words) >= 8:
                middle = (len(words) - 8) // 2
                run = words[middle : middle + 8]
                planted += [" ".join(run).upper(), "zz " + " \n\t".join(run) + " zz"]
                clean += [" ".join(run[:7]) + " zz " + run[7], " , ".join(run), "zz".join(run)]
    assert len(planted) > 3500
    # ß and the like change in upper case and back: no plants of that kind
    planted = [p for p in planted if p.lower().upper().lower() == p.lower()]
    assert all(benchmarks.find(text) >= 0 for text in planted)
    # a variation may by chance be another question's run; the plain rule says which
    for text in clean:
        assert (benchmarks.find(text) >= 0) == bool(runs(text) & grams)
    assert sum(benchmarks.find(text) < 0 for text in clean) > 0.99 * len(clean)


def test_real_s1k_against_math500_and_aime24(shared_data):
    """Mostly turns of phrase: "where $m$ and $n$ are relatively prime positive integers. Find"."""
    lines = (shared_data / "s1k_questions.jsonl").read_text().splitlines()
    questions = [json.loads(line)["question"] for line in lines]
    found, together = {}, set()
    for name in ("math500/test.jsonl", "aime/aime24.jsonl"):
        texts = [json.loads(x)["problem"] for x in (shared_data / name).read_text().splitlines()]
        benchmarks = Benchmarks({name: texts})
        ours = {i for i, q in enumerate(questions) if benchmarks.find(q) >= 0}
        grams = set().union(*map(runs, texts))
        assert ours == {i for i, q in enumerate(questions) if runs(q) & grams}
        found[name] = len(ours)
        together |= ours
    assert found == {"math500/test.jsonl": 89, "aime/aime24.jsonl": 87}
    assert len(together) == 104


def runs(text):
    words = text.lower().split()
    return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}
