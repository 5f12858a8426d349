r"""Test cases of the grader: spellings of one value."""
# ruff: noqa: RUF001  (symbols that look like others are what this file is about)

from __future__ import annotations

import re
from collections.abc import Iterator

GradingCase = tuple[str, str]
INT, SQRT = r"-?\d+", r"\\sqrt\{?(\d+)\}?"
FRACTION = re.compile(r"(-?)\\d?frac\s*(?:\{(\d+)\}|(\d)) ?(?:\{(\d+)\}|(\d))")


def spellings(gold: str) -> Iterator[GradingCase]:
    """Name and text of other spellings of a gold answer: all of them are right."""
    yield "spaces around", f"  {gold}  "
    yield "in math", f"${gold}$"
    yield "in text and bold", f"**${gold}$**"
    if "=" not in gold and r"\in " not in gold:
        yield "a name before it", f"k = {gold}"
    for rule in (_integers, _fractions, _notation, _units, _structures, _sums):
        yield from rule(gold)


def _integers(gold: str) -> Iterator[GradingCase]:
    if not re.fullmatch(INT, gold):
        return
    n = int(gold)
    yield "n.0", f"{n}.0"
    yield "n.00", f"{n}.00"
    yield "text{n}", rf"\text{{{n}}}"
    yield "mathbf{n}", rf"\mathbf{{{n}}}"
    yield "(n)", f"({n})"
    yield "n units", f"{n} units"
    yield "n words", rf"{n} \text{{ square units}}"
    yield "full width", "".join(chr(ord(c) + 0xFEE0) if c.isdigit() else c for c in gold)
    yield "U+2212", gold.replace("-", "\u2212")
    yield "n/1", rf"\frac{{{n}}}{{1}}"
    yield "2n/2", rf"\frac{{{2 * n}}}{{2}}"
    yield "n - 1 + 1", f"{n - 1} + 1"
    if abs(n) >= 1000:
        for name, comma in (("1,000", ","), ("1{,}000", "{,}"), ("1\\,000", r"\,"), ("1 000", " "),
                            ("1,\\!000", r",\!"), ("1\u202f000", "\u202f")):  # fmt: skip
            yield name, f"{n:,}".replace(",", comma)
        yield "$1,000.00", f"\\${n:,}.00"


def _fractions(gold: str) -> Iterator[GradingCase]:
    if not (match := FRACTION.fullmatch(gold)):
        return
    sign, top, bottom = match[1], int(match[2] or match[3]), int(match[4] or match[5])
    for kind in ("frac", "dfrac", "tfrac", "cfrac"):
        yield rf"\{kind}", rf"{sign}\{kind}{{{top}}}{{{bottom}}}"
    yield "a/b", f"{sign}{top}/{bottom}"
    yield "a / b", f"{sign}{top} / {bottom}"
    yield "a÷b", f"{sign}{top} ÷ {bottom}"
    yield "(a)/(b)", f"{sign}({top})/({bottom})"
    yield "multiple", rf"{sign}\frac{{{3 * top}}}{{{3 * bottom}}}"
    yield "sign above", rf"\frac{{{sign}{top}}}{{{bottom}}}"
    yield "sign below", rf"\frac{{{top}}}{{{sign}{bottom}}}"
    if top < 10 and bottom < 10:
        yield r"\frac12", rf"{sign}\frac{top}{bottom}"
        yield r"\frac 12", rf"{sign}\frac {top} {bottom}"
    if top > bottom and top % bottom:
        yield "mixed", rf"{sign}{top // bottom}\frac{{{top % bottom}}}{{{bottom}}}"
        yield "mixed, plain", f"{sign}{top // bottom} {top % bottom}/{bottom}"
    if 10**9 * top % bottom == 0:
        decimal = f"{top / bottom:.9f}".rstrip("0")
        yield "decimal", sign + decimal
        yield "decimal, zeros", sign + decimal + "00"
        yield ".5", sign + decimal.removeprefix("0")
    else:
        yield "eight digits", f"{sign}{top / bottom:.8f}"
        yield "six digits", f"{sign}{top / bottom:.6f}"


def _notation(gold: str) -> Iterator[GradingCase]:
    for name, old, new in (
        (r"\left(", r"(?<![\\\w])\(", r"\\left("),
        ("no \\left", r"\\(?:left|right)", ""),
        ("π", r"\\pi", "π"),
        ("pi", r"\\pi(?![a-z])", "pi"),
        ("√", r"\\sqrt\{(\d+)\}", r"√\1"),
        ("sqrt()", r"\\sqrt\{(\d+)\}", r"sqrt(\1)"),
        (r"\sqrt2", r"\\sqrt\{(\d)\}", r"\\sqrt\1"),
        ("∞", r"\\infty", "∞"),
        (r"+\infty", r", ?\\infty", r", +\\infty"),
        ("∪", r"\\cup", "∪"),
        ("x^{n}", r"\^(\d)", r"^{\1}"),
        ("²", r"(?<=[a-z])\^2", "²"),
        (r"\cdot", r"(?<=\d) ?(?=\\(?:sqrt|pi))", r" \\cdot "),
        ("*", r"(?<=\d) ?(?=\\(?:sqrt|pi))", " * "),
        (r"\times", r"(?<=\d) ?(?=\\(?:sqrt|pi))", r" \\times "),
        ("bmatrix", "pmatrix", "bmatrix"),
        ("matrix, no spaces", r" *(\\\\|&) *", r"\1"),
        ("_{n}", r"_(\d)", r"_{\1}"),
        ("base n", r"_\{?(\d)\}?", r" (base \1)"),
        ("base left out", r"_\{?(\d)\}?$", ""),
        ("no spaces", r"(?<![A-Za-z\d,]) (?![A-Za-z\d])", ""),
        ("thin spaces", r" ", r"\\, "),
        ("escaped twice", r"\\(?=(?:frac|sqrt|pi|text)\b)", r"\\\\"),
    ):  # fmt: skip
        if ("matrix" in gold and name == "escaped twice") or (r"\!" in gold and r"\," in new):
            continue
        yield name, re.sub(old, new, gold)
    if match := re.fullmatch(rf"(\d+) ?{SQRT}", gold):
        yield "under the root", rf"\sqrt{{{int(match[1]) ** 2 * int(match[2])}}}"
        yield "root first", rf"\sqrt{{{match[2]}}} \cdot {match[1]}"
        yield "power of 1/2", rf"{match[1]} \cdot {match[2]}^{{1/2}}"
    if match := re.fullmatch(r"\\frac\{\\sqrt\{(\d+)\}\}\{(\d+)\}", gold):
        yield "root / n", rf"\sqrt{{{match[1]}}}/{match[2]}"
        yield "n below root", rf"\frac{{{match[1]}}}{{{match[2]}\sqrt{{{match[1]}}}}}"
    if match := re.fullmatch(r"(\d*)\.(\d+)", gold):
        yield (
            "decimal as a fraction",
            rf"\frac{{{int(match[1] + match[2])}}}{{{10 ** len(match[2])}}}",
        )
        yield "0.5", f"{match[1] or 0}.{match[2]}"
        yield "zeros", f"{gold}00"
        power = len(match[2])
        yield "scientific", rf"{int(match[1] + match[2])} \times 10^{{-{power}}}"
        yield "e", f"{int(match[1] + match[2])}e-{power}"


def _units(gold: str) -> Iterator[GradingCase]:
    if r"^\circ" in gold:
        for name, degree in (("no degree", ""), ("°", "°"), ("degrees", " degrees"),
                             (r"^{\circ}", r"^{\circ}"), (r"\text{ degrees}", r"\text{ degrees}"),
                             (r"^o by \degree", r"\degree")):  # fmt: skip
            yield name, gold.replace(r"^\circ", degree)
    if gold.startswith(r"\$"):
        yield "no currency", gold[2:]
        yield "dollars", gold[2:] + r" \text{ dollars}"
        yield "dollars, plain", gold[2:].replace(r"\!", "") + " dollars"
        yield r"\text{\$}", r"\text{\$}" + gold[2:]
        yield "$", "$" + gold[2:].replace(r"\!", "")
    if match := re.fullmatch(r"(.+?) ?\\(?:text|mbox)\{ ?(\w+)\}(\^2)?", gold):
        value, unit, square = match.groups()
        yield "no unit", value
        yield "unit plain", f"{value} {unit}{square or ''}"
        if square:
            yield "square unit", rf"{value} \text{{ square {unit}}}"
            yield "sq. unit", f"{value} sq. {unit}"
            yield "unit²", f"{value} {unit}²"
    if match := re.fullmatch(r"\\text\{(\(?)(\w+)(\)?)\}", gold):
        yield "word", match[2]
        yield "(word)", f"({match[2]})" if match[1] else match[2]
        yield "bold", rf"\textbf{{{match[1]}{match[2]}{match[3]}}}"
        yield "mathrm", rf"\mathrm{{{match[2]}}}"
        yield "lower case", match[2].lower()
        if not match[1]:
            yield "capital", rf"\text{{{match[2].capitalize()}}}"
    if match := re.fullmatch(r"(\d+) ?\\frac\{?(\d)\}?\{?(\d)\}?", gold):
        integer, top, bottom = map(int, match.groups())
        yield "improper", rf"\frac{{{integer * bottom + top}}}{{{bottom}}}"
        yield "mixed as decimal", str(integer + top / bottom)
        yield "mixed, plain", f"{integer} {top}/{bottom}"
        yield "mixed, sum", rf"{integer} + \frac{{{top}}}{{{bottom}}}"


def _structures(gold: str) -> Iterator[GradingCase]:
    bare = re.sub(r"\\(?:left|right)", "", gold).strip()
    if match := re.fullmatch(r"([(\[])([^()\[\]]*),([^()\[\]]*)([)\]])", bare):
        low, high = match[2].strip(), match[3].strip()
        if match[1] + match[4] != "()" or "infty" in bare:
            yield from _inequalities(match[1], low, high, match[4])
            yield "x in", rf"x \in {gold}"
        else:
            yield "(x,y) =", f"(x, y) = {gold}"
            yield "no brackets", f"{low}, {high}"
            yield r"\langle", rf"\langle {low}, {high} \rangle"
    elif r"\cup" in bare:
        parts = [part.strip() for part in bare.split(r"\cup")]
        yield "union turned", r" \cup ".join(reversed(parts))
        yield "x in", rf"x \in {gold}"
    elif (
        re.fullmatch(r"[^()\[\]\\,]+(,[^()\[\]\\,]+)+", bare)
        and "!" not in gold
        and not re.search(r"\d,\d{3}", gold)
    ):
        items = [item.strip() for item in bare.split(",")]
        yield "turned", ",".join(reversed(items))
        yield "set", rf"\{{{bare}\}}"
        yield "and", ", ".join(items[:-1]) + f" and {items[-1]}"
        yield r"\text{and}", ", ".join(items[:-1]) + rf" \text{{ and }} {items[-1]}"
        yield "x = a or x = b", " or ".join(f"x = {item}" for item in items)
        yield "x = a, b", "x = " + ", ".join(items)
    yield from _signs_and_vectors(gold)
    yield from _equations(gold)


def _inequalities(opening: str, low: str, high: str, closing: str) -> Iterator[GradingCase]:
    """The inequalities that describe an interval."""
    signs = ("<" if opening == "(" else r"\leq", "<" if closing == ")" else r"\leq")
    turned = [s.replace("<", ">").replace("l", "g") for s in signs]
    if "infty" in low:
        yield "inequality", f"x {signs[1]} {high}"
    elif "infty" in high:
        yield "inequality", f"x {turned[0]} {low}"
    else:
        yield "inequality", rf"{low} {signs[0]} x {signs[1]} {high}"
        yield "inequality, turned", rf"{high} {turned[1]} x {turned[0]} {low}"


def _signs_and_vectors(gold: str) -> Iterator[GradingCase]:
    if gold.count(r"\pm") == 1 and not gold.startswith(r"\{"):
        plus, minus = gold.replace(r"\pm", "+"), gold.replace(r"\pm", "-")
        yield "± written out", f"{plus}, {minus}"
        yield "± turned", rf"{minus} \text{{ or }} {plus}"
        yield "± set", rf"\{{{plus}, {minus}\}}"
        yield "±", gold.replace(r"\pm", "±")
    if match := re.fullmatch(r"\\begin\{pmatrix\}([^&]*)\\end\{pmatrix\}", gold):
        entries = [entry.strip() for entry in match[1].split(r"\\")]
        yield "vector in a line", f"({', '.join(entries)})"
        fractions = [re.sub(r"(\d+)/(\d+)", r"\\frac{\1}{\2}", entry) for entry in entries]
        spaced, column = r" \\[2pt] ".join(fractions), r" \\ ".join(entries)
        yield "entries as frac", rf"\begin{{bmatrix}}{spaced}\end{{bmatrix}}"
        yield "array", rf"\left(\begin{{array}}{{c}}{column}\end{{array}}\right)"


def _equations(gold: str) -> Iterator[GradingCase]:
    if match := re.fullmatch(r"([a-z]) = (.*)", gold) or re.fullmatch(r"([a-z])=(.*)", gold):
        yield "right side", match[2]
        yield "sides swapped", f"{match[2]} = {match[1]}"
        yield "moved over", f"{match[1]} - ({match[2]}) = 0"
    elif match := re.fullmatch(r"(.*) = 0", gold):
        yield "negated", f"-({match[1]}) = 0"
        yield "doubled", f"2({match[1]}) = 0"
        yield "sides swapped", f"0 = {match[1]}"


def _terms(gold: str) -> list[str] | None:
    """The signed terms of a sum without brackets; None of anything else."""
    if not re.fullmatch(r"-?[^-+,=()\[\]]+( ?[+-] ?[^-+,=()\[\]]+)+", gold) or "{" in re.sub(
        r"\\(?:sqrt|frac)\{\w+\}(?:\{\w+\})?", "", gold
    ):
        return None
    return [term.replace(" ", "") for term in re.findall(r"[+-]? ?[^-+]+", gold)]


def _sums(gold: str) -> Iterator[GradingCase]:
    if terms := _terms(gold):
        turned = "".join(t if t[0] in "+-" else f"+{t}" for t in reversed(terms))
        yield "terms turned", turned.removeprefix("+")
        yield "times one", f"1 \\cdot ({gold})"
        yield "minus minus", "-(" + "".join(
            t.translate(str.maketrans("+-", "-+")) if t[0] in "+-" else f"-{t}" for t in terms
        ) + ")"  # fmt: skip
