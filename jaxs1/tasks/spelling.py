r"""One spelling for the ways in which people write an expression.

`spelled` changes how something is written and never what it says: \dfrac12, 1/2, U+00BD and
\tfrac{1}{2} all become \frac{1}{2}. `split_unit` takes the unit off a quantity.
"""

from __future__ import annotations

import functools
import re
import unicodedata

from jaxs1.tasks.answers import PLAIN, stripped

_GREEK = dict(
    zip("αβγδεθλμρστφω", "alpha beta gamma delta epsilon theta lambda mu rho sigma tau phi omega"
        .split(), strict=True)
)  # fmt: skip
_SYMBOLS = {
    "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "√": r"\sqrt ", "×": r"\times ", "⋅": r"\cdot ",
    "·": r"\cdot ", "∗": "*", "÷": "/", "∕": "/", "±": r"\pm ", "≤": r"\leq ", "≥": r"\geq ",
    "≠": r"\neq ", "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "ℝ": r"\mathbb{R}",
    "∅": r"\emptyset ", "⟨": "(", "⟩": ")", "′": "'", "’": "'", "–": "-", "‒": "-", "‐": "-",
    "‑": "-", **{letter: f"\\{name} " for letter, name in _GREEK.items()},
}  # fmt: skip
_TABLE = {**PLAIN, **{ord(symbol): latex for symbol, latex in _SYMBOLS.items()}}
_SCRIPTS = {"^": "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "_": "₀₁₂₃₄₅₆₇₈₉₊₋"}

_GROUP = r"(\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})"
_NUMERALS = dict(zip("two three four five six seven eight nine ten twelve sixteen".split(),
                     (*range(2, 11), 12, 16), strict=True))  # fmt: skip
#: In this order: what is written, and the one spelling of it.
_RULES = [
    (re.compile(pattern), to)
    for pattern, to in {
        r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\s*\.?": "",
        r"(?<=\d)(?:,?\\!|\{,\}|\\[,;:]|~)\s*(?=\d{3}(?!\d))": "",  # thousands
        r"(?<![\d.,])(\d{1,3}) (?=\d{3}(?: \d{3})*(?![\d/]))": r"\1",
        r"(?<=\d{3}) (?=\d{3}(?: \d{3})*$)": "",
        r"\\!\s*|\\(?:display|text)style(?![A-Za-z])|\\limits": "",
        r"(\\\\)|\\[,;: ]|~|\\q?quad(?![A-Za-z])|\\hspace\{[^{}]*\}": lambda m: m[1] or " ",
        r"\\[dtcx]frac(?![A-Za-z])": r"\\frac",
        r"(?<![\d\s}\\])\\math(?:rm|bf|it)\s*\{([A-Za-z])\}": r"\1",
        r"\\(?:mbox|text(?:bf|it|rm|normal)|math(?:rm|bf|it|sf)|operatorname\*?|bm)\s*(?=\{)": r"\\text",
        r"(?:\\text\{)?\s*\\\$\s*\}?": r"\\text{dollar}",
        r"(?<!\\)\$": "",
        r"[\s,]*(?:\\text\{[\s,]*(?:and|or)[\s,]*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*": ", ",
        r"\s*(?:\\%|(?:\\text\{)?\s*\b(?:percent|percentage|per cent|pct)\b\s*\}?)": "%",
        r"\s*\^\s*\{?\\circ\}?\s*(?:\\text\{)?\s*([CF])\b\}?": r"\\text{degree\1}",
        r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-z])|(?:\\text\{)?\s*\bdeg(?:rees?)?\b\s*\}?)":
            r"\\text{degree}",
        r"\\(?:leqslant|leqq|le)(?![A-Za-z])|<=": r"\\leq ",
        r"\\(?:geqslant|geqq|ge)(?![A-Za-z])|>=": r"\\geq ",
        r"\\ne(?![A-Za-z])|!=": r"\\neq ",
        r"\\lt(?![A-Za-z])": "<",
        r"\\gt(?![A-Za-z])": ">",
        r"\\langle": "(",
        r"\\rangle": ")",
        r"\\lbrace(?![a-z])": r"\\{",
        r"\\rbrace(?![a-z])": r"\\}",
        r"\\[lr]?vert(?![a-z])": "|",
        r"\\varnothing": r"\\emptyset ",
        r"\\(begin|end)\{(?:[pbB]|small|)matrix\}|\\(begin|end)\{array\}(?:\{[^{}]*\})?":
            lambda m: f"\\{m[1] or m[2]}{{pmatrix}}",
        r"\\\\\s*\[\d+\w*\]": r"\\\\",
        r"\\\\\s*(?=\\end)": "",
        r"[\[(]\s*(\\begin\{pmatrix\}(?:(?!\\end).)*\\end\{pmatrix\})\s*[\])]": r"\1",
        r"\*\*": "^",
        r"\*": r"\\cdot ",
        r"(?<![\\A-Za-z])infinity(?![A-Za-z])": r"\\infty ",
        r"(?<![\\A-Za-z])(sqrt|pi|infty|sin|cos|tan|cot|sec|csc|log|ln|theta)(?![A-Za-z])": r"\\\1 ",
        r"\+(?=\s*\\infty)": "",
        r"\\sqrt\s*\(([^()]*)\)": r"\\sqrt{\1}",
        r"\\sqrt\s*(\d+|[A-Za-z]|\\pi(?![a-z]))": r"\\sqrt{\1}",
        r"\\frac\s*(\d|[A-Za-z])(?=\s*[\d\w{\\])": r"\\frac{\1}",
        rf"\\frac\s*{_GROUP}\s*(\d|[A-Za-z]|\\pi(?![a-z]))": r"\\frac\1{\2}",
        r"(?<![\w.}/^)])(\d+)\s*/\s*(\d+)(?![\d.]|\s*/)": r"\\frac{\1}{\2}",
        r"\^\s*\(([^()]*)\)": r"^{\1}",
        r"\^\s*(-\s*\d+|\d{2,})": r"^{\1}",
        r"([_^])\s*\{\s*([A-Za-z\d])\s*\}": r"\1\2",
        rf"_\{{?(?:\\text\{{)?\s*({'|'.join(_NUMERALS)})\s*\}}?\}}?": lambda m: f"_{{{_NUMERALS[m[1]]}}}",
        r"\s*\(?(?:\\text\{)?\s*\bbase[ -](\d+)\s*\}?\)?$": r"_{\1}",
    }.items()
]  # fmt: skip

#: Unit -> how else it is written, without plural.
_UNITS = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre",
    "km": "kilometer kilometre", "in": "inch inche", "ft": "foot feet", "yd": "yard", "mi": "mile",
    "g": "gram gm", "kg": "kilogram", "lb": "lbs", "s": "second sec", "min": "minute",
    "h": "hour hr", "day": "", "week": "", "month": "", "year": "yr", "dollar": "usd buck",
    "cent": "", "euro": "€ eur", "pound": "£", "yen": "¥", "degree": "", "mph": "", "kmph": "kph",
    "l": "liter litre", "ml": "milliliter millilitre", "degreeC": "", "degreeF": "", "%": "",
}  # fmt: skip
_UNIT_OF = {name: unit for unit, names in _UNITS.items() for name in (unit, *names.split())}
_SHORT = "|".join(
    sorted((n for n in _UNIT_OF if n.isalpha() and len(n) > 1), key=len, reverse=True)
)
_UNIT = re.compile(
    r"(?<=[\d)}\].!])(?:\s*(?:\\text\{[^{}]*\}|%)|\s+(?:[A-Za-z]{3,}|sq|cu)\.?"
    rf"|\s*(?:{_SHORT})(?![A-Za-z])\.?|\s+[mgshlL](?![A-Za-z]))"
    r"(?:\s*(?:\\text\{[^{}]*\}|/\s*[A-Za-z]+|\^\{?[23]\}?)|\s+[A-Za-z]+){0,3}$"
)
_CURRENCY = re.compile(r"^(-?)\s*(?:\\text\{(dollar|euro|pound)\}|([€£¥])|(USD|EUR))\s*(?=-?[\d.])")


@functools.lru_cache(maxsize=1 << 16)
def spelled(text: str) -> str:
    """An answer in the one spelling, stripped."""
    if not text.isascii():
        for mark, digits in _SCRIPTS.items():
            plain = str.maketrans(digits, "0123456789+-")
            text = re.sub(
                f"[{digits}]+", lambda m, k=mark, p=plain: f"{k}{{{m[0].translate(p)}}}", text
            )
        text = re.sub("[¼-¾⅐-⅞]", lambda m: " {}/{} ".format(*_halves(m[0])), text)
    text = stripped(text.translate(_TABLE))
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)  # escaped twice
    for pattern, to in _RULES:
        text = pattern.sub(to, text)
    return " ".join(stripped(text).split())


def _halves(fraction: str) -> list[str]:
    return unicodedata.normalize("NFKC", fraction).split("\u2044")


def compact(text: str) -> str:
    """Without the spaces that say nothing: all but those between two digits or two letters."""
    return re.sub(
        r"(?<![\dA-Za-z]) | (?![\dA-Za-z])|(?<=\d) (?=[A-Za-z])|(?<=[A-Za-z]) (?=\d)", "", text
    )


def split_unit(text: str) -> tuple[str, str | None]:
    """A quantity without its unit, and the unit: None without one, "" for one that is unknown."""
    unit = None
    if before := _CURRENCY.match(text):
        unit = _named(next(filter(None, before.groups()[1:])))
        text = before[1] + text[before.end() :]
    if behind := _UNIT.search(text):
        unit = unit or _named(behind[0])
        text = text[: behind.start()]
    return text.strip(), unit


def _named(unit: str) -> str:
    """The one name of a unit; "" where it is not in the table."""
    words = (
        re.sub(r"\\text\{([^{}]*)\}", r" \1 ", unit).replace(".", "").replace("{", "").strip("} ")
    )
    power = re.search(r"\^([23])", words)
    words = re.sub(r"\^[23]", "", words)
    if shape := re.match(r"\s*(square|sq|cubic|cu)\s+", words, re.I):
        words = words[shape.end() :]
    exponent = power[1] if power else {"s": "2", "c": "3"}[shape[1][0].lower()] if shape else ""
    name = words.strip() if words.strip() in _UNIT_OF else words.strip().lower()
    known = _UNIT_OF.get(name) or _UNIT_OF.get(name.removesuffix("s"))
    return f"{known}{exponent}" if known else ""
