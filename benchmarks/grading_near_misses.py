r"""Test cases of the grader: answers that look like a gold one but differ."""

from __future__ import annotations

import re
from collections.abc import Iterator

from benchmarks.grading_cases import FRACTION, INT, GradingCase


def near_misses(gold: str) -> Iterator[GradingCase]:
    """Name and text of answers that look like a gold one but differ: all of them are wrong."""
    for match in re.finditer(r"\d", gold):
        other = str((int(match[0]) + 1) % 10)
        yield "a digit changed", gold[: match.start()] + other + gold[match.end() :]
    for match in re.finditer(r"(?<![\\e{^(,\s])\s*([+-])(?= ?[\w\\])", gold):
        turned = {"+": "-", "-": "+"}[match[1]]
        yield "a sign changed", gold[: match.start(1)] + turned + gold[match.end(1) :]
    yield from _other_ends(gold)
    for rule in (_other_integers, _other_fractions, _other_decimals, _other_units):
        yield from rule(gold)
    for rule in (_other_lists, _other_signs, _other_matrices, _other_equations):
        yield from rule(gold)
    if r"\pi" in gold:
        yield "without pi", re.sub(r"\\pi\b", "", gold) if re.search(r"\d ?\\pi", gold) else "1"
        yield "pi as 3.14", re.sub(r"\\pi\b", r"(3.14)", gold)
    if r"\sqrt" in gold:
        yield "without the root", re.sub(r"\\sqrt", "", gold)
    if re.fullmatch(r"(?:\d|\\sqrt\{?\d+\}?|\\frac\{\d+\}\{\d+\}|\\pi| )+", gold) and gold != "0":
        yield "negative", f"-{gold}"
    yield from _other_words(gold)


def _other_words(gold: str) -> Iterator[GradingCase]:
    text = re.search(r"\\text\{(\w+)\}$", gold) if not re.search(r"\d", gold) else None
    if text:
        yield "another word", r"\text{west}"
        yield "its letters in another order", text[1][::-1]
    if re.search(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])", gold) and "x" in gold and not text:
        yield "another variable", re.sub(r"(?<![\\A-Za-z])x(?![A-Za-z])", "w", gold)
    if re.search(r"(?<![\\A-Za-z])[rR](?![A-Za-z])", gold):
        yield "another case", gold.swapcase()


def _other_ends(gold: str) -> Iterator[GradingCase]:
    """Intervals with one end opened or closed."""
    bare = re.sub(r"\\(?:left|right)", "", gold)
    interval = re.fullmatch(r"[(\[].*,.*[)\]]", bare) and (
        "infty" in gold or re.search(r"[\[\]]", gold)
    )
    if not interval or r"\cup" in bare:
        return
    for end, kind in ((0, "[("), (-1, "])")):
        if bare[end] in kind:
            other = kind[1 - kind.index(bare[end])]
            yield "an end opened or closed", other + bare[1:] if end == 0 else bare[:-1] + other


def _other_integers(gold: str) -> Iterator[GradingCase]:
    if re.fullmatch(INT, gold):
        n = int(gold)
        for name, other in (("off by one", n + 1), ("ten times", 10 * n), ("square", n * n)):
            if other != n:
                yield name, str(other)
        yield "a little more", f"{n}.001"
        yield "and a half", rf"{n}\frac{{1}}{{2}}" if n > 0 else f"{n}.5"
        yield "with a variable", f"{n}x" if n else "x"
        yield "with a letter that is a unit", f"{n}t" if n else "t"
        yield "factorial", f"{n}!" if n > 2 else f"{n + 3}!"
        yield "in a base", f"{n}_8"
        yield "a list", f"{n}, {n + 1}"
        yield "a pair", f"({n}, {n})"
        yield "not equal", rf"x \neq {n}"
        yield "more than", f"x > {n}"
        if len(gold) > 1:
            yield "without its last digit", gold[:-1]


def _other_fractions(gold: str) -> Iterator[GradingCase]:
    if match := FRACTION.fullmatch(gold):
        sign, top, bottom = match[1], int(match[2] or match[3]), int(match[4] or match[5])
        if top != bottom:
            yield "upside down", rf"{sign}\frac{{{bottom}}}{{{top}}}"
        yield "top only", f"{sign}{top}"
        yield "a product", rf"{sign}{top} \cdot {bottom}" if bottom != 1 else "0"
        if 100 * top % bottom:
            yield "two digits", f"{sign}{top / bottom:.2f}"
        yield "negated", rf"\frac{{{top}}}{{{bottom}}}" if sign else rf"-\frac{{{top}}}{{{bottom}}}"
        yield "whole before it", rf"{sign}1\frac{{{top}}}{{{bottom}}}"


def _other_decimals(gold: str) -> Iterator[GradingCase]:
    if match := re.fullmatch(r"(\d*)\.(\d+)", gold):
        yield (
            "point moved",
            f"{match[1] or 0}{match[2][0]}.{match[2][1:] or 0}"
            if int(match[1] + match[2])
            else "1",
        )
        yield "rounded", f"{match[1] or 0}.{match[2][:-1]}"


def _other_units(gold: str) -> Iterator[GradingCase]:
    if r"^\circ" in gold:
        yield "another unit", gold.replace(r"^\circ", r"\text{ cm}")
        yield "radians", gold.replace(r"^\circ", r"\pi")
    if gold.startswith(r"\$"):
        yield "another unit", gold[2:] + r" \text{ cents}"
    if "inches" in gold:
        yield "another unit", gold.replace("inches", "feet")
    if "cm}^2" in gold:
        yield "another power", gold.replace("^2", "^3")
        yield "another unit", gold.replace("cm", "m")
    if match := re.fullmatch(r"(\d+)_\{?(\d)\}?", gold):
        yield "another base", f"{match[1]}_{int(match[2]) + 1}"
        yield "its value", str(int(match[1], int(match[2])))
    if gold.endswith("i") and re.search(r"\d", gold):
        yield "without i", gold[:-1]


def _other_lists(gold: str) -> Iterator[GradingCase]:
    bare = re.sub(r"\\(?:left|right)", "", gold).strip()
    match = re.fullmatch(r"\(([^()\[\]]*)\)", bare)
    if match and "," in match[1] and "infty" not in bare:
        items = [item.strip() for item in match[1].split(",")]
        if items != items[::-1]:
            yield "order turned", f"({','.join(reversed(items))})"
        yield "one missing", f"({','.join(items[:-1])})"
        yield "one more", f"({','.join([*items, '0'])})"
        yield "closed", f"[{','.join(items)}]"
        yield "a set", rf"\{{{','.join(items)}\}}"
        yield "the first only", items[0]
    elif r"\cup" in bare:
        parts = [part.strip() for part in bare.split(r"\cup")]
        yield "a part only", parts[0]
        yield "intersection", bare.replace(r"\cup", r"\cap")
        yield "closed", bare.replace("(", "[", 1)
    elif re.fullmatch(r"-?\d+(, ?-?\d+)+", gold) and not re.search(r"\d,\d{3}", gold):
        items = [item.strip() for item in gold.split(",")]
        yield "one missing", ",".join(items[1:])
        yield "one more", ",".join([*items, "997"])
        yield "another pair", f"({','.join(reversed(items))})"
        yield "the sum", str(sum(map(int, items)))
        yield (
            "interval",
            f"({','.join(sorted(items, key=int))})"
            if len(items) == 2 and items != sorted(items, key=int)
            else "0",
        )


def _other_signs(gold: str) -> Iterator[GradingCase]:
    if gold.count(r"\pm") == 1:
        yield "plus only", gold.replace(r"\pm", "+").replace(r"\{", r"\{")
        yield "minus only", gold.replace(r"\pm", "-")


def _other_matrices(gold: str) -> Iterator[GradingCase]:
    if "pmatrix" in gold:
        inside = re.sub(r"\\(?:begin|end)\{pmatrix\}", "", gold)
        rows = [[e.strip() for e in row.split("&")] for row in inside.split(r"\\")]

        def write(rows: list[list[str]]) -> str:
            inside = r" \\ ".join(" & ".join(row) for row in rows)
            return rf"\begin{{pmatrix}}{inside}\end{{pmatrix}}"

        if len(rows[0]) == 1:
            yield "transposed", write([[row[0] for row in rows]])
        yield "rows turned", write(rows[::-1])
        yield "an entry negated", write([[f"-({rows[0][0]})", *rows[0][1:]], *rows[1:]])
        yield "a row missing", write(rows[:-1])


def _other_equations(gold: str) -> Iterator[GradingCase]:
    if match := re.fullmatch(r"([a-z]) ?= ?(.*)", gold):
        yield "another name", f"q = {match[2]}"
        yield "another value", f"{match[1]} = {match[2]} + 1"
    elif match := re.fullmatch(r"(.*) = 0", gold):
        yield "another constant", f"{match[1]} = 1"
        yield "no equation", match[1]
    if match := re.fullmatch(r"\\text\{\((\w)\)\}", gold):
        yield "another letter", rf"\text{{({chr(ord(match[1]) + 1)})}}"
        yield "another letter, bare", chr(ord(match[1]) + 1)
