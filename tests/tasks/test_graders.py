"""The grader: gold answers of MATH500 are right, others' are not; integers, letters, puzzles."""

import json
import random

import pytest

from benchmarks import grading
from benchmarks.grading import LAYOUTS, fits, laid_out
from jaxs1.tasks.benchmarks import GRADERS as ALL
from jaxs1.tasks.expressions import LONGEST
from jaxs1.tasks.graders import GRADERS, choice, integer, is_correct
from jaxs1.tasks.puzzles import Problem
from tests.curation.pools import write_jsonl
from tests.tasks.golds import GOLDS

MATH = GRADERS["math"]


@pytest.fixture(scope="module")
def gold():
    from tests.conftest import SHARED

    path = SHARED / "math500" / "test.jsonl"
    if not path.is_file():
        pytest.skip("needs the shared data beside the repository")
    return [json.loads(line)["answer"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "form",
    [
        "So it is \\boxed{%s}.",
        "Final Answer: %s",
        "\nFinal Answer: $%s$",  # other text than the gold one: math-verify must see it is equal
        "Let me see.\n\nAnswer: The result is \\boxed{%s}, as\nwanted.",
    ],
)
def test_all_gold_answers_of_math500_are_right(gold, form):
    assert len(gold) == 500
    wrong = [x for x in gold if not MATH.is_right(MATH.extract(form % x), x)]
    assert not wrong


def test_shuffled_gold_answers_of_math500_are_wrong(gold):
    other = list(gold)
    random.Random(1).shuffle(other)
    agree = {(a, b) for a, b in zip(other, gold, strict=True) if a != b and MATH.is_right(a, b)}
    assert not agree
    assert sum(a != b for a, b in zip(other, gold, strict=True)) > 490


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gold_answer_is_right_in_every_layout_and_another_is_wrong(layout):
    fitting = [gold for gold in GOLDS if fits(layout, gold)]
    assert not [gold for gold in fitting if not grading.right(laid_out(layout, gold), gold)]
    others = zip(GOLDS, GOLDS[7:] + GOLDS[:7], strict=True)
    assert not [(a, b) for a, b in others if grading.right(laid_out(layout, a), b)]


def test_shuffled_gold_answers_are_wrong():
    for seed in range(3):
        others = list(GOLDS)
        random.Random(seed).shuffle(others)
        pairs = zip(others, GOLDS, strict=True)
        assert not [(a, b) for a, b in pairs if a != b and grading.right(f"\\boxed{{{a}}}", b)]


def test_the_benchmark_writes_what_it_finds(tmp_path, capsys, monkeypatch):
    files = {"math500": ["42", "\\frac{1}{2}"], "gsm8k": ["so\n#### 18", "so\n#### 1,000"]}
    for name, answers in files.items():
        write_jsonl(tmp_path / f"{name}.jsonl", [{"answer": answer} for answer in answers])
    paths = [str(tmp_path / f"{name}.jsonl") for name in files]
    assert grading.main([*paths, "--output", str(tmp_path)]) == 0
    written = (tmp_path / "results.md").read_text()
    assert written in capsys.readouterr().out
    assert "| Minerva | 2 / 2 | 2 / 2 |" in written and "* GSM8K: 0 of 12" in written
    monkeypatch.setitem(LAYOUTS, "hidden", "I know @ and 7.\nNo more.")
    assert grading.main([*paths, "--output", str(tmp_path)]) == 1
    assert "| hidden | 0 / 2 | 0 / 2 |" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize(
    ("answer", "solution", "correct"),
    [("Answer: 42.", "so \\boxed{42}", True), ("**Answer:**\n\n42", "steps\n#### 42", True),
     ("\\boxed{7}\n#### Remark\nA frequent wrong answer is 5.", "5", False),
     ("\\boxed{42}", "42.", True), ("12", "12 apples.", True), ("42", "a\nproof", None)],
)  # fmt: skip
def test_curation_grades_as_evaluation_does(answer, solution, correct):
    assert is_correct(answer, solution) is correct


@pytest.mark.parametrize(
    ("given", "gold", "same"),
    [
        ("\\frac{1}{2}", "0.5", True),
        ("x+1", "1+x", True),
        ("x+1", "x+2", False),
        (" 4 ", "4", True),
        ("1," * LONGEST, "1", False),
        ("no number", "4", False),
    ],
)
def test_expressions(given, gold, same):
    assert MATH.same(given, gold) is same


@pytest.mark.parametrize(
    ("text", "number"),
    [("073", 73), ("$73$", 73), ("73.", 73), ("1,073", 1073), ("\\text{73}", 73), ("-5", -5),
     ("$1{,}234$", 1234), ("**73**.", 73), ("\uff17\uff13", 73), ("73!", None), ("7 3", None),
     ("204.0", 204), ("1/2", None), ("3,4", None), ("12 apples", None)],
)  # fmt: skip
def test_integers(text, number):
    assert integer(text) == number


@pytest.mark.parametrize(
    ("answer", "right"),
    [("Final Answer: 033", True), ("\\boxed{33}", True), ("Answer: $m+n=33$", True),
     ("Answer: 033.", True), ("\\boxed{33}\n\n#### Why\nSo it is 5.", True), ("**033**", True),
     ("Answer:\n\\[\n33\n\\]", True), ("33^\\circ", True), ("#### 33", True),
     ("\\boxed{33!}", False),
     ("**Answer:**\n\n33", True), ("\u7b54\u6848\uff1a33", True), ("Answer: 1,033", False),
     ("Answer: 330", False), ("Answer: 3.3", False), ("thirty", False)],
)  # fmt: skip
def test_aime(answer, right):
    grader = GRADERS["integer"]
    assert grader.is_right(grader.extract(answer), "33") is right


@pytest.mark.parametrize(
    ("text", "letter"),
    [("B", "B"), ("(b)", "B"), ("**B) 12 eV**", "B"), ("The answer is B.", "B"),
     ("Answer: B", "B"), ("Final Answer: (C) some text", "C"), ("\\boxed{\\text{D}}", "D"),
     ("A boy went", None), ("Thus\nthe correct choice is **B) text**\nfoo", "B"), ("$B$", "B"),
     ("(C).", "C"), ("Option C", "C"), ("**C**", "C"), ("Answer:C", "C"), ("Answer: **C**.", "C"),
     ("\\boxed{\\text{(C)}}", "C"), ("**Answer:**\n\nC", "C"), ("answer: c", "C"), ("[C]", "C"),
     ("\\boxed{C}\n\n#### Why\nA is wrong.", "C"),
     ("Final Answer: The final answer is (C). I hope", "C"),
     ("Option A is wrong.\nThe correct option is **C**.", "C"), ("\u7b54\u6848\uff1aC\u3002", "C"),
     ("A is small, so\n\n**Final Answer**\n\nC", "C"), ("<answer>C</answer>", "C"),
     ("I think so", None),
     ("Answer: \\(\\mathbf{C}\\)", "C"), ("The correct answer is C because A is wrong.", "C"),
     ("Answer: cannot say", None), ("It is hard\nto say", None),
     ("Answer: C. 12 m", "C"), ("", None)],
)  # fmt: skip
def test_letters(text, letter):
    assert choice(text) == letter


def test_puzzles_are_graded_as_the_demo_grades_them():
    problem = Problem((4, 2, 7, 1), 1)
    grader, gold = ALL["puzzle"], json.dumps(problem.record())
    for answer, right in {
        "\nFinal Answer: 4*2-7": True,
        "4*2-7": True,
        "Final Answer: 2*4-7": True,
        "Final Answer: 4*2-6": False,  # no 6 in the question
        "Final Answer: 4*2-1": False,
        "": False,
    }.items():
        assert grader.is_right(grader.extract(answer), gold) is right, answer
