r"""Decide whether two mathematical answers are equal.

Both are normalised and taken apart: lists, tuples, intervals, unions and matrices are compared item
by item, numbers as exact fractions, words as words. The rest, single expressions and equations, is
compared by math-verify, which alone would read a point as a set and "1 4/5" as 1, take 2t for
2 tons and 3R for 3r, and round to six decimals.

It runs in the main thread only: math-verify's time limits are signals.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from jaxs1.config import UserError
from jaxs1.tasks.spelling import compact, spelled, split_unit

#: Longest answer [characters]: a longer one is degenerate, and math-verify would take seconds.
LONGEST = 400

_OPEN, _CLOSE = re.compile(r"\\begin\{|\\\{|[({\[]"), re.compile(r"\\end\{|\\\}|[)}\]]")
_TOKEN = re.compile(r"\\(?:begin|end)\{[a-z]+\}|\\[{}]|\\[A-Za-z]+|\\\\|.", re.S)
_MATRIX = re.compile(r"\\begin\{pmatrix\}((?:(?!\\begin|\\end).)*)\\end\{pmatrix\}", re.S)
_LETTERS = r"(?:\\text\{[^{}]*\}|\\[A-Za-z]+|[A-Z]{2,}|[A-Za-z][a-z]{3,}|[A-Za-z])"
_VARIABLE = rf"{_LETTERS}'*(?:_\w|_\{{[^{{}}]*\}})?"
_QUANTITY = rf"\|?{_VARIABLE}(?:\([\w,]*\))?\|?"
#: Left side of an assignment: x, f(x), (x,y), |AB|, \angle ABC, A:B, \frac{AB}{CD}.
_NAME = re.compile(
    rf"[(\[]?{_QUANTITY}(?:[,:/ ]{_QUANTITY})*[)\]]?|\\frac\{{{_QUANTITY}\}}\{{{_QUANTITY}\}}"
)
_RELATION = re.compile(r"(\\leq|\\geq|<|>)")
#: Operations whose result may have several parts.
_OPERATION = re.compile(r"\\(?:setminus|backslash|cap|mathbb|emptyset|[nlg]eq|begin)|[<>]")
_DECIMAL = re.compile(r"(?<![\w.])(\d*)\.(\d+)(?![\d.])")
_LITERAL = re.compile(
    r"([-+]?)(?:(?P<integer>\d+)?(?P<sign>[-+]?)\\frac\{(?P<top>-?\d+)\}\{(?P<bottom>-?\d+)\}"
    r"|(?P<decimal>\d+\.?\d*|\.\d+)(?:(?:\\times|\\cdot)10\^\{?(?P<power>-?\d+)\}?|[eE](?P<e>[-+]?\d+))?)"
)
#: (C), C, \text{(C) } 12
_CHOICE = re.compile(r"(?:\\text\{)?(?:([A-Za-z])$|\(([A-Za-z])\)(?=$|[\s.:}]))")
_LETTER = re.compile(r"\\(?:mathbb|text)\{[^{}]*\}|\\[A-Za-z]+|[A-Za-z]")
_BASED = re.compile(r"\(?(-?[\dA-F]+)\)?_\{?(\d+)\}?")


@dataclass(frozen=True)
class _Many:
    """Several items; `brackets` is "" for a bare list, "rows" for a matrix, "row" inside it.

    `name` is the left side of an equation with this value, "" without one.
    """

    brackets: str
    items: tuple[_Many | str, ...]
    name: str = ""

    @property
    def unordered(self) -> bool:
        """Whether it is a set."""
        return self.brackets in ("", "{}")


def same_expression(given: str, gold: str) -> bool:
    """Whether two mathematical answers are equal.

    An answer of more than LONGEST characters equals only the same text.

    Raises:
        UserError: math-verify is not installed.
    """
    given, gold = " ".join(given.split()), " ".join(gold.split())
    return given == gold or (max(len(given), len(gold)) <= LONGEST and _same_text(given, gold))


@functools.lru_cache(maxsize=1 << 16)
def _same_text(given: str, gold: str) -> bool:
    given, gold = spelled(given), spelled(gold)
    return compact(given) == compact(gold) or _same(_parsed(given), _parsed(gold))


def _same(given: _Many | str, gold: _Many | str) -> bool:
    if isinstance(given, str) and isinstance(gold, str):
        return _same_item(given, gold)
    if isinstance(given, _Many) and isinstance(gold, _Many):
        return _same_many(given, gold)
    many, single = (given, gold) if isinstance(given, _Many) else (gold, given)
    assert isinstance(many, _Many) and isinstance(single, str)
    one = many.brackets == "" or (many.brackets == "{}" and len(many.items) == 1)
    if one and all(_same(item, single) for item in many.items):  # "1.5, or 3/2"
        return True
    if _OPERATION.search(single):
        return _verify(_latex(gold), _latex(given))
    return False


def _same_many(given: _Many, gold: _Many) -> bool:
    a, b = given.brackets, gold.brackets
    if given.name and gold.name and given.name != gold.name:
        return False
    if given.unordered and gold.unordered:
        return _same_set(given.items, gold.items)
    vector = {"()", "[]", ""}
    if "rows" in (a, b) and vector & {a, b}:  # a vector may be written in a line
        given, gold = _in_line(given), _in_line(gold)
    elif a != b and not ("" in (a, b) and vector >= {a, b}):
        return False
    return len(given.items) == len(gold.items) and all(map(_same, given.items, gold.items))


def _same_set(given: Sequence[_Many | str], gold: Sequence[_Many | str]) -> bool:
    left = [*dict.fromkeys(given)]
    wanted = [*dict.fromkeys(gold)]
    if len(left) != len(wanted):
        return False
    for item in wanted:
        found = next((other for other in left if _same(other, item)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _in_line(many: _Many) -> _Many:
    """A matrix of one row or one column as a list of its entries."""
    if many.brackets == "rows":
        rows = [row.items for row in many.items if isinstance(row, _Many)]
        if len(rows) == 1 or all(len(row) == 1 for row in rows):
            return _Many("()", tuple(entry for row in rows for entry in row))
    return many


# -- taking apart ------------------------------------------------------------------------------


def _split(text: str, *separators: str) -> list[str]:
    """Split at separators outside of all brackets, which need not match: (3,4]."""
    parts, depth = [""], 0
    for token in _TOKEN.findall(text):
        depth += bool(_OPEN.match(token)) - bool(_CLOSE.match(token))
        if depth == 0 and token in separators:
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts]


def _parsed(text: str) -> _Many | str:
    """The parts of a normalised answer."""
    for separator in (";", ",", r"\cup"):
        if len(parts := _split(text, separator)) > 1:
            return _Many("", tuple(_parsed(part) for part in parts if part))
    if matrix := _MATRIX.fullmatch(text):
        rows = [_split(row, "&") for row in _split(matrix[1], "\\\\")]
        return _Many("rows", tuple(_Many("row", tuple(map(_parsed, row))) for row in rows))
    name, _, value = text.partition(r"\in ")
    names = [name] if value else []
    if not value:
        *names, value = _split(text, "=")
    if names and all(map(_NAME.fullmatch, map(compact, names))):
        inside = _parsed(value)
        if isinstance(inside, _Many):
            return replace(inside, name=compact(names[-1]))
    return _bracketed(text) or _both_signs(text) or _interval(text) or text


def _bracketed(text: str) -> _Many | None:
    """A tuple, an interval or a set."""
    opening, closing = _OPEN.match(text), re.search(r"(?:\\\}|[)\]])$", text)
    if not (opening and closing) or opening[0] in ("{", r"\begin{"):
        return None
    inside = text[opening.end() : closing.start()]
    depth = 0
    for token in _TOKEN.findall(inside):
        depth += bool(_OPEN.match(token)) - bool(_CLOSE.match(token))
        if depth < 0:
            return None
    parts = _split(inside, ",", ";")
    brackets = opening[0][-1] + closing[0][-1]
    if len(parts) == 1 and brackets != "{}":
        return None  # a factor
    return _Many(brackets, tuple(_parsed(part) for part in parts if part))


def _both_signs(text: str) -> _Many | None:
    if text.count(r"\pm") != 1:
        return None
    return _Many("", tuple(text.replace(r"\pm", sign).removeprefix("+") for sign in "+-"))


def _interval(text: str) -> _Many | None:
    """The interval of an inequality: -2 \\leq x < 7, x > 5."""
    parts = [part.strip() for part in _RELATION.split(text)]
    variables = [bool(re.fullmatch(_VARIABLE, part)) for part in (parts[0], parts[-1])]
    if len(parts) == 5 and re.fullmatch(_VARIABLE, parts[2]):
        low, first, name, second, high = parts
    elif len(parts) == 3 and variables == [True, False]:
        name, low, first, second, high = parts[0], r"-\infty", parts[1], parts[1], parts[2]
        if parts[1] in (r"\geq", ">"):
            low, high, second = high, r"\infty", "<"
            first = parts[1].replace(">", "<").replace("geq", "leq")
        else:
            first = "<"
    elif len(parts) == 3 and variables == [False, True]:
        turned = parts[1].translate(str.maketrans("<>", "><"))
        turned = {r"\leq": r"\geq", r"\geq": r"\leq"}.get(parts[1], turned)
        return _interval(f"{parts[2]} {turned} {parts[0]}")
    else:
        return None
    if {first, second} <= {">", r"\geq"}:
        low, first, second, high = high, second, first, low
    elif not {first, second} <= {"<", r"\leq"}:
        return None
    brackets = ("[" if "eq" in first else "(") + ("]" if "eq" in second else ")")
    return _Many(brackets, (low, high), name)


def _latex(node: _Many | str) -> str:
    if isinstance(node, str):
        return node
    items = [_latex(item) for item in node.items]
    if node.brackets == "":
        sets = any(isinstance(item, _Many) for item in node.items)
        return r" \cup ".join(items) if sets else ", ".join(items)
    if node.brackets in ("row", "rows"):
        inside = (" & " if node.brackets == "row" else r" \\ ").join(items)
        return inside if node.brackets == "row" else rf"\begin{{pmatrix}}{inside}\end{{pmatrix}}"
    opening, closing = node.brackets[0], node.brackets[1]
    return "\\" * (opening == "{") + opening + ", ".join(items) + "\\" * (closing == "}") + closing


# -- single items ------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1 << 16)
def _same_item(given: str, gold: str) -> bool:
    if compact(given) == compact(gold):
        return True
    for decide in (_as_equations, _as_words, _in_a_base, _as_quantities):
        if (decided := decide(given, gold)) is not None:
            return decided
    return _verify(split_unit(gold)[0], split_unit(given)[0])


def _as_words(given: str, gold: str) -> bool | None:
    """Words are compared without case and article; a word is not an expression."""
    letter, wanted = _CHOICE.match(given), _CHOICE.fullmatch(gold)
    if letter and wanted and "(" in given + gold:
        return (letter[1] or letter[2]).lower() == (wanted[1] or wanted[2]).lower()
    a, b = _words(given), _words(gold)
    if a is not None and b is not None:
        return a == b
    return False if len(a or b or "") > 3 else None


def _words(text: str) -> str | None:
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    if not re.fullmatch(r"[A-Za-z][A-Za-z .'-]*", text) or not re.search("[A-Za-z]{3}", text):
        return None
    return re.sub(r"^(?:the|an?) ", "", " ".join(re.sub("[.'-]", " ", text).lower().split()))


def _as_equations(given: str, gold: str) -> bool | None:
    """x = 5 equals 5, and not y = 5; other equations are left to math-verify."""
    left, right = _split(given, "="), _split(gold, "=")
    if len(left) == len(right) == 1:
        return None
    named = [len(side) > 1 and bool(_NAME.fullmatch(compact(side[0]))) for side in (left, right)]
    if all(named):
        return compact(left[0]) == compact(right[0]) and _same_text(left[-1], right[-1])
    if len(right) == 1:
        curve = left[-1] == "0" and not named[0] and any(map(str.isalpha, _LETTER.findall(left[0])))
        return not curve and _same_text(left[-1], gold)  # 2x - y = 0 is not 0
    if len(left) == 1:
        return named[1] and _same_text(given, right[-1])
    return None


def _in_a_base(given: str, gold: str) -> bool | None:
    """52_8 equals 52, the base being its unit, and no other number."""
    number, wanted = _BASED.fullmatch(compact(given)), _BASED.fullmatch(compact(gold))
    if number and wanted:
        return number.groups() == wanted.groups()
    if number:
        return False
    return wanted[1] == given if wanted else None


def _as_quantities(given: str, gold: str) -> bool | None:
    """Numbers are compared exactly; quantities with different units differ."""
    (a, unit), (b, wanted) = split_unit(given), split_unit(gold)
    if unit and wanted and unit != wanted:
        return False
    left, right = _number(a), _number(b)
    if left is None or right is None:
        return None if a != b else True
    hundreds = {1, 100} if "%" in (unit, wanted) and unit != wanted else {1}
    if any(left == right * f if wanted != "%" else left * f == right for f in hundreds):
        return True
    return _rounded(a, left, right) or _rounded(b, right, left)


def number(text: str) -> Fraction | None:
    """The value of an answer that is a number in any spelling; otherwise None."""
    return _number(spelled(text))


@functools.lru_cache(maxsize=1 << 16)
def _number(text: str) -> Fraction | None:
    """The value of a literal: an integer, a decimal, a fraction, a mixed number, 3\\cdot 10^5."""
    match = _LITERAL.fullmatch(compact(text))
    if match is None or (match["sign"] and match["integer"]):
        return None
    sign = -1 if "-" in (match[1], match["sign"]) else 1
    if match["decimal"] is None:
        if int(match["bottom"]) == 0:
            return None
        value = Fraction(int(match["top"]), int(match["bottom"])) + int(match["integer"] or 0)
    else:
        power = int(match["power"] or match["e"] or 0)
        if abs(power) > LONGEST:
            return None
        value = Fraction(match["decimal"].removesuffix(".")) * Fraction(10) ** power
    return sign * value


def _rounded(text: str, value: Fraction, exact: Fraction) -> bool:
    """Whether a decimal rounds a periodic fraction to six places or more."""
    ends = pow(10, exact.denominator.bit_length(), exact.denominator) == 0
    places = len(text.partition(".")[2])
    return not ends and _precise(text) and abs(value - exact) * 2 <= Fraction(1, 10**places)


def _precise(text: str) -> bool:
    """Whether a literal is a decimal with six places and four significant digits."""
    integer, point, places = compact(text).lstrip("-").partition(".")
    digits = (integer + places).lstrip("0")
    return bool(point) and digits.isdecimal() and len(digits) >= 4 and len(places) >= 6


def _verify(gold: str, given: str) -> bool:
    """math-verify's verdict; decimals become fractions to avoid rounding."""
    if not (_precise(gold) or _precise(given)):
        gold, given = (_DECIMAL.sub(_as_fraction, x) for x in (gold, given))
    rename = _small_letters(gold + given)
    return _verified(rename(gold), rename(given))


def _as_fraction(decimal: re.Match[str]) -> str:
    return rf"{{\frac{{{int(decimal[1] + decimal[2])}}}{{{10 ** len(decimal[2])}}}}}"


def _small_letters(text: str) -> Callable[[str], str]:
    """Replaces capitals by unused letters, since math-verify takes R for r."""
    letters = {x for x in _LETTER.findall(text) if len(x) == 1}
    free = (x for x in "qwzuvbkmnpchjorstyagxl" if x not in letters)
    names = dict(zip(sorted(filter(str.isupper, letters)), free, strict=False))
    return lambda part: _LETTER.sub(lambda m: names.get(m[0], m[0]), part)


@functools.lru_cache(maxsize=1 << 16)
def _verified(gold: str, given: str) -> bool:
    try:
        from math_verify import verify
    except ImportError:
        raise UserError("grading: needs the package math-verify; pip install math-verify") from None
    return bool(verify(_sympy(gold), _sympy(given), allow_set_relation_comp=True))


@functools.lru_cache(maxsize=1 << 16)
def _sympy(answer: str) -> Any:
    """An expression parsed by math-verify: the complete text, not the first number in it."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    spelling = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last"
    )
    complete = LatexExtractionConfig(
        try_extract_without_anchor=False, boxed_match_priority=0, normalization_config=spelling
    )
    return parse(f"\\boxed{{{answer}}}", [complete])
