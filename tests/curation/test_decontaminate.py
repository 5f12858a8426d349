"""Decontamination: planted overlaps are found, near ones are not, on made and on real text."""

import json
import random

import pytest

from jaxs1.config import UserError
from jaxs1.curation.decontaminate import Benchmarks, N, ngrams, read_benchmarks
from tests.curation.pools import write_jsonl

WORDS = ["find", "the", "least", "$x^2$", "prime", "of", "Let", "angle,", "n.", "sum", "\\pi", "is"]


def made_benchmarks():
    """Two benchmarks of random words; some questions are too short to overlap with any."""
    rng = random.Random(0)
    return {
        name: [" ".join(rng.choices(WORDS, k=rng.randrange(5, 40))) for _ in range(200)]
        for name in ("first", "second")
    }


def test_every_planted_overlap_is_found_and_no_other():
    """A run of 8 words of every question is planted, altered where the rule says so."""
    texts = made_benchmarks()
    benchmarks = Benchmarks(texts)
    grams = set().union(*(runs(text) for questions in texts.values() for text in questions))
    found = spared = 0
    for question in (text for questions in texts.values() for text in questions):
        words = question.split()
        if len(words) < N:
            assert benchmarks.find(question) < 0
            continue
        middle = (len(words) - N) // 2
        run = words[middle : middle + N]
        for planted in (" ".join(run).upper(), "zz " + " \n\t\u00a0".join(run) + " zz"):
            assert benchmarks.find(planted) >= 0
            found += 1
        for near in (" ".join(run[:7]) + " zz " + run[7], " , ".join(run), "zz".join(run)):
            assert (benchmarks.find(near) >= 0) == bool(runs(near) & grams)
            spared += benchmarks.find(near) < 0
    assert found > 600 and spared > 900


def test_an_overlap_belongs_to_the_first_benchmark_that_has_it():
    text = "a b c d e f g h"
    benchmarks = Benchmarks({"x": ["none"], "y": [text], "z": [text + " i"]})
    assert benchmarks.find(f"so {text.upper()} then") == 1
    assert benchmarks.find("b c d e f g h i") == 2
    assert benchmarks.find("b c d e f g h") == -1
    assert Benchmarks({}).find(text) == -1


def test_ngrams():
    assert list(ngrams("A b  c d e f\ng H, i")) == ["a b c d e f g h,", "b c d e f g h, i"]
    assert list(ngrams("one two three")) == []


def test_read_benchmarks(tmp_path):
    rows = [{"problem": "a b c d e f g h", "other": 1}]
    path = str(write_jsonl(tmp_path / "b.jsonl", rows))
    benchmarks = read_benchmarks({path: "problem"})
    assert benchmarks.names == (path,) and benchmarks.find("A B C D E F G H i") == 0
    with pytest.raises(UserError, match="has no column 'question', only other, problem"):
        read_benchmarks({path: "question"})
    with pytest.raises(UserError, match=r"b.jsonl:1: column 'other' must hold .* is int"):
        read_benchmarks({path: "other"})


def test_every_planted_overlap_with_real_benchmarks_is_found_and_no_other(shared_data):
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
