"""Answers to puzzles: which expressions are correct, against brute force."""

import pytest

from jaxs1.tasks import puzzles
from jaxs1.tasks.puzzles import Problem
from tests.tasks.puzzle_oracle import brute_force

EXAMPLE = Problem((7, 4, 6, 2), 1)


@pytest.mark.parametrize(
    "answer",
    ["4*2-7", "2*4-7", "Final Answer: 4*2-7", "Answer: Final Answer: 4*2-7", "\n Answer:4*2-7 \n"],
)
def test_is_correct_accepts(answer):
    """Any right expression, with the usual words and white space around it."""
    assert puzzles.is_correct(EXAMPLE, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Final Answer:",
        "4*2-6",  # the wrong value
        "2*3-5",  # the right value, numbers that were not given
        "2*2-3",  # a number used twice and one not given
        "1",
        "4*2",
        "4*2-7=1",
        "4*2-7-0",
        "(4*2)-7",
        "-7+4*2",
        "4*2--7",
        "4**2-7",
        "04*2-7",
        "٤*2-7",
        "4*2-7.",
        "4*2-7\n4*2-7",
        "4*2-7 Final Answer: 4*2-6",
        "Final Answer: Final Answer: 4*2-7",
        "Final Answer: the answer is 4*2-7",
        "9" * 5000 + "*2-7",
        "__import__('os').getpid()*2-7",
    ],
)
def test_is_correct_rejects(answer):
    """Wrong values, wrong numbers, and everything that is not exactly one expression."""
    assert not puzzles.is_correct(EXAMPLE, answer)


def test_is_correct_rejects_a_reused_number():
    """Each number at most once, though each was given."""
    assert not puzzles.is_correct(Problem((7, 4, 6, 2), 2), "2*2-2")
    assert not puzzles.is_correct(Problem((7, 4, 6, 2), 12), "4*4-4")
    assert not puzzles.is_correct(Problem((7, 4, 6, 2), 10), "4*2+2")


def test_is_correct_is_brute_force():
    """On every expression over digits 1..7, the grader and brute force agree."""
    every = brute_force([n for n in range(1, 8) for _ in range(3)])
    for target in (1, 12, 34):
        right = {e for e, value in brute_force(EXAMPLE.numbers).items() if value == target}
        problem = Problem(EXAMPLE.numbers, target)
        assert {e for e in every if puzzles.is_correct(problem, e)} == right


def test_evaluate_expression():
    """Values of what is allowed, None for the rest."""
    assert puzzles.evaluate_expression("4*2-7") == 1
    assert puzzles.evaluate_expression("1*2-7") == -5
    assert puzzles.evaluate_expression("0*12+345") == 345
    for text in ("", "4*2", "4+2*7", "4*2-7 ", "4*2-7\n", "4 * 2 - 7", "4*2/7", "1234*2+1"):
        assert puzzles.evaluate_expression(text) is None
