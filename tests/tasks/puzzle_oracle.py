"""Puzzles by brute force: every expression, and the arithmetic of a line."""

import itertools
import re

import numpy as np

STEP = re.compile(r"([+-]\d)=(-?\d+)(?: (low|high|yes))?")


def parse_question(line: str) -> tuple[int, list[int]]:
    """Target and numbers, read back from the question's text."""
    target, numbers = re.fullmatch(r"Make (\d+) from ([1-7](?:,[1-7]){3})", line).groups()
    return int(target), [int(n) for n in numbers.split(",")]


def brute_force(numbers) -> dict[str, int]:
    """Every expression over three of the numbers with its value, any order of x and y."""
    return {
        (text := f"{x}*{y}{sign}{z}"): eval(text)
        for x, y, z in itertools.permutations(numbers, 3)
        for sign in "+-"
    }


def check_arithmetic(line: str, target: int | None) -> list[tuple[str, bool]]:
    """Assert a line's sums and verdicts; return its expressions and whether each is a hit."""
    opening, rest = line.split(" ", 1)
    pair, product = opening.split("=")
    assert eval(pair) == int(product)
    steps = STEP.findall(rest)
    assert " ".join(f"{op}={v}" + (f" {w}" if w else "") for op, v, w in steps) == rest
    tried = []
    for operation, value, word in steps:
        assert eval(pair + operation) == int(value)
        if target is None:
            assert not word
        else:
            assert word == ("low", "yes", "high")[int(np.sign(int(value) - target)) + 1]
        tried.append((pair + operation, word == "yes"))
    return tried
