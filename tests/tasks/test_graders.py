"""The grader: gold answers of MATH500 are right, others' are not; integers, letters, puzzles."""

import json
import random

import pytest

from jaxs1.tasks.benchmarks import GRADERS as ALL
from jaxs1.tasks.expressions import LONGEST
from jaxs1.tasks.graders import GRADERS, choice, integer
from jaxs1.tasks.puzzles import Problem

MATH = GRADERS["math"]
#: Shuffled gold answers that math-verify takes for the other one: it reads a list without brackets
#: as a set, and takes a point for it.
ACCIDENTAL = {("(-2,1)", "1,-2")}


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
    assert agree <= ACCIDENTAL, agree
    assert sum(a != b for a, b in zip(other, gold, strict=True)) > 490


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
     ("$1{,}234$", 1234), ("204.0", 204), ("1/2", None), ("3,4", None), ("12 apples", None)],
)  # fmt: skip
def test_integers(text, number):
    assert integer(text) == number


@pytest.mark.parametrize(
    ("answer", "right"),
    [("Final Answer: 033", True), ("\\boxed{33}", True), ("Answer: $m+n=33$", True),
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
     ("It is hard\nto say", None), ("Answer: C. 12 m", "C"), ("", None)],
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
