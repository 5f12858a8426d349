"""Synthetic pools with planted defects, and the rules once more in plain Python.

The oracle shares no code with the package: rows are dicts, pools are lists, texts are compared as
texts. It takes the same random words (PCG64's raw output) in the order that selection.py documents.
"""

import hashlib
import json
import random
import re

import numpy as np

AIME, GPQA, MATH = "qq8933/AIME_1983_2024", "Idavidrein/gpqa", "qfq/openaimath/Algebra"
OTHERS = ("AI-MO/NuminaMath-CoT/aops_forum", "KbsdJames/Omni-MATH", "TIGER-Lab/TheoremQA/float")
BENCHMARKS = {
    "first": [
        "Find the number of ways in which nine red marbles, can be put into bags.",
        "Too short",
    ],
    "second": ["Let $ABC$ be a triangle and let $M$ be the midpoint of its longest side $BC$."],
}
WORDS = ("alpha", "beta", "gamma", "delta", "$x^2$", "\\pi")
REQUIRED = (
    "source_type", "thinking_trajectories", "attempt", "length", "correct", "solved_small",
    "solved_large", "subject",
)  # fmt: skip
DAMAGED = (
    "look [asy] draw(a--b); [/asy]", "see ![Image] here", "as p1. says", "as p999. says",
    "the **1** case", "a **x2y** b",
)  # fmt: skip
#: Nearly a defect: rows with these stay.
HARMLESS = (
    "as p0. says", "as p1000. says", "as p01. says", "P7. says", "and 2 is a **bold** word",
    "the **1 2** case", "**a]1**", "![image]", "asy",
)  # fmt: skip
PARTS = [f"p{k}." for k in range(1, 1000)]
CONTAMINATED = (
    "NUMBER OF WAYS IN WHICH NINE RED MARBLES,",
    "number of\nways \t in which\u00a0nine  red marbles,",
    "Let $ABC$ be a triangle and let $M$",
    "let $m$ be the midpoint of its longest side",
)
NEARLY_CONTAMINATED = (
    "number of ways in which nine red marbles",  # 7 words and one without its comma
    "be the midpoint of its longest side $BC$",  # 8 words, the last one without its full stop
    "too short",
)


def planted_pool(n, seed=0):
    """Rows, and stage -> numbers of the rows that it must drop."""
    rng = random.Random(seed)
    rows = [clean_row(i, rng) for i in range(n)]
    expected = {s: set() for s in ("duplicates", "decontamination", "missing", "format")}
    free = list(range(n))
    rng.shuffle(free)
    take = iter(free).__next__
    for k in range(n // 100):
        i = take()
        rows[i]["question"] += " " + CONTAMINATED[k % len(CONTAMINATED)]
        expected["decontamination"].add(i)
        rows[take()]["question"] += " " + NEARLY_CONTAMINATED[k % len(NEARLY_CONTAMINATED)]
        i, name = take(), REQUIRED[k % len(REQUIRED)]
        rows[i][name] = [None, [], [""]][k % 3] if name == "thinking_trajectories" else None
        expected["missing"].add(i)
        i, damage = take(), DAMAGED[k % len(DAMAGED)]
        rows[i] |= {"question": rows[i]["question"] + " " + damage, "source_type": OTHERS[0]}
        expected["format"].add(i)
        rows[take()]["question"] += " " + HARMLESS[k % len(HARMLESS)]
        i = take()
        rows[i] |= {"question": rows[i]["question"] + " [asy] x", "source_type": AIME}
        a, b = sorted((take(), take()))
        rows[b]["question"] = rows[a]["question"]
        expected["duplicates"].add(b)
        i = take()
        rows[i]["question"] = None if k % 2 else " "
        expected["missing"].add(i)
    gone = set().union(*expected.values())
    expected["difficulty"] = {
        i
        for i, row in enumerate(rows)
        if i not in gone and (row["solved_small"] or row["solved_large"])
    }
    return rows, expected


def clean_row(i, rng):
    source = rng.choice((AIME, GPQA, MATH)) if rng.random() < 0.03 else rng.choice(OTHERS)
    words = " ".join(rng.choice(WORDS) for _ in range(30))
    return {
        "question": f"Question {i}: {words}?",
        "solution": str(i),
        "source_type": source,
        "thinking_trajectories": [f"thinking about {i}"],
        "attempt": f"it is {i}",
        "length": rng.randrange(500, 12_000),  # many rows share a length
        "correct": rng.random() < 0.6,
        "solved_small": rng.random() < 0.3,
        "solved_large": rng.random() < 0.4,
        "subject": f"{rng.choice([3, 5, 11, 51, 60, 68, 81, rng.randrange(90)]):02d}",
        "extra": {"kept": i},
    }


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_benchmarks(folder):
    """Benchmark files and their columns, as --benchmarks takes them."""
    columns = {"first": "problem", "second": "question"}
    return {
        str(write_jsonl(folder / f"{name}.jsonl", [{column: q} for q in BENCHMARKS[name]])): column
        for name, column in columns.items()
    }


def oracle_filter(rows):
    """Numbers of the rows that all filters keep, and stage -> numbers that it drops."""
    grams = {
        tuple(words[i : i + 8])
        for texts in BENCHMARKS.values()
        for words in (text.lower().split() for text in texts)
        for i in range(len(words) - 7)
    }
    dropped = {s: set() for s in ("duplicates", "decontamination", "missing", "format")}
    dropped["difficulty"] = set()
    kept, seen = [], set()
    for i, row in enumerate(rows):
        question, source = (row["question"] or "").strip() and row["question"], row["source_type"]
        words = (question or "").lower().split()
        trace = (row["thinking_trajectories"] or [None])[0]
        if question and question in seen:
            dropped["duplicates"].add(i)
        elif any(tuple(words[j : j + 8]) in grams for j in range(len(words) - 7)):
            dropped["decontamination"].add(i)
        elif not question or not trace or any(row[name] is None for name in REQUIRED):
            dropped["missing"].add(i)
        elif (
            ("[asy]" in question and "AIME" not in source)
            or "![Image]" in question
            or any(part in question for part in PARTS)
            or re.search(r"\*\*(?=.*\d)[^\s\]]*\*\*", question)
        ):
            dropped["format"].add(i)
        elif row["solved_small"] or row["solved_large"]:
            dropped["difficulty"].add(i)
        else:
            kept.append(i)
        seen.add(question)
    return kept, dropped


def key(question):
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def drawn_subject(word, tickets):
    """The subject that holds the ticket drawn by a random word of 64 bits."""
    ticket = word * sum(tickets.values()) >> 64
    for subject, count in tickets.items():
        if ticket < count:
            return subject
        ticket -= count
    raise AssertionError("no ticket is as high")


def oracle_select(rows, kept, seed, size=1000, uniform_until=700):
    """Numbers of the selected rows."""
    source = np.random.PCG64(seed)

    def word():
        return int(source.random_raw())

    selected = set()
    pools = {}
    for i in kept:
        row = rows[i]
        pools.setdefault(row["subject"], []).append(i)
        if row["correct"] and (
            row["source_type"] in (AIME, GPQA)
            or ("openaimath" in row["source_type"] and row["length"] > 5600)
        ):
            selected.add(i)
    for pool in pools.values():
        pool.sort(key=lambda i: (-rows[i]["length"], key(rows[i]["question"])))
    aime = [rows[i]["subject"] for i in kept if rows[i]["source_type"] == AIME]
    gpqa = [rows[i]["subject"] for i in kept if rows[i]["source_type"] == GPQA]
    # counts of AIME + counts of GPQA x (half of AIME's total / GPQA's total), as integers
    tickets = {n: 2 * len(gpqa) * aime.count(n) + len(aime) * gpqa.count(n) for n in {*aime, *gpqa}}
    while len(selected) < size:
        uniform = dict.fromkeys(pools, 1)
        weights = uniform if len(selected) < uniform_until else tickets
        subject = drawn_subject(word(), {n: weights[n] for n in sorted(pools) if n in weights})
        rank = len(pools[subject])
        while rank >= len(pools[subject]):
            rank = f"{word():064b}".index("1")  # heads until the first tail: 1/2, 1/4, 1/8, ...
        selected.add(pools[subject].pop(rank))
        if not pools[subject]:
            del pools[subject]
    return selected
