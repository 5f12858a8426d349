r"""Normalise the spelling of an expression.

`spelled` changes the spelling and never the meaning: \dfrac12, 1/2, U+00BD and
\tfrac{1}{2} all become \frac{1}{2}. `split_unit` takes the unit off a quantity.
"""
# ruff: noqa: RUF001  (symbols that look like others are what this file is about)

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable

from jaxs1.tasks.answers import PLAIN, stripped

_SYMBOLS = {
    "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "√": r"\sqrt ", "×": r"\times ", "⋅": r"\cdot ",
    "·": r"\cdot ", "∗": "*", "÷": "/", "∕": "/", "±": r"\pm ", "≤": r"\leq ", "≥": r"\geq ",
    "≠": r"\neq ", "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "ℝ": r"\mathbb{R}",
    "∅": r"\emptyset ", "⟨": "(", "⟩": ")", "′": "'", "’": "'", "–": "-", "‒": "-", "‐": "-",
    "‑": "-", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "θ": r"\theta ",
    "λ": r"\lambda ", "μ": r"\mu ", "ρ": r"\rho ", "σ": r"\sigma ", "φ": r"\phi ", "ω": r"\omega ",
}  # fmt: skip
_TABLE = {**PLAIN, **{ord(symbol): latex for symbol, latex in _SYMBOLS.items()}}
_SCRIPTS = {"^": "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "_": "₀₁₂₃₄₅₆₇₈₉₊₋"}

_GROUP = r"(\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})"
_TEXT = r"(?:\\text\{)?\s*"
#: Commas of thousands; in brackets they are those of a list.
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_BRACKET = re.compile(r"\(|\[|\\\{")
_NUMERALS = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "twelve": 12, "sixteen": 16,
}  # fmt: skip
_FUNCTIONS = "sqrt|pi|infty|sin|cos|tan|cot|sec|csc|log|ln|theta"
#: Spellings and their normal form, applied in this order.
_RULES: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\s*\.?": "",
    r"(?<=\d)(?:,?\\!|\{,\}|\\[,;:]|~)\s*(?=\d{3}(?!\d))": "",  # thousands
    r"(?<![\d.,])(\d{1,3}) (?=\d{3}(?: \d{3})*(?![\d/]))": r"\1",
    r"(?<=\d{3}) (?=\d{3}(?: \d{3})*$)": "",
    r"\\!\s*|\\(?:display|text)style(?![A-Za-z])|\\limits": "",
    r"(\\\\)|\\[,;: ]|~|\\q?quad(?![A-Za-z])|\\hspace\{[^{}]*\}": lambda m: m[1] or " ",
    r"^\s*\\(?:approx|simeq)|\\(?:begin|end)\{(?:aligned|split|gathered)\}": "",
    r"\\(?:text)?color\{\w+\}|(?<=\d)_\{10\}$": "",
    r"(?<=\d)\s*x\s*(?=10\^)": r"\\times ",
    r"\\[dtcx]frac(?![A-Za-z])": r"\\frac",
    r"\\math(?:rm|bf|it)\s*\{([ie])\}": r"\1",
    r"(?<![\d\s}\\])\\math(?:rm|bf|it)\s*\{([A-Za-z])\}": r"\1",
    r"\\(?:mbox|text(?:bf|it|rm|normal)|math(?:rm|bf|it|sf)|operatorname\*?|bm)\s*(?=\{)":
        r"\\text",
    rf"{_TEXT}\\\$\s*\}}?": r"\\text{dollar}",
    r"(?<!\\)\$": "",
    r"[\s,]*(?:\\text\{[\s,]*(?:and|or)[\s,]*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*":
        ", ",
    rf"\s*(?:\\%|{_TEXT}\b(?:percent|percentage|per cent|pct)\b\s*\}}?)": "%",
    rf"\s*\^\s*\{{?\\circ\}}?\s*{_TEXT}([CF])\b\}}?": r"\\text{degree\1}",
    rf"\s*(?:\^\s*\{{?\s*\\circ\s*\}}?|\\degree(?![a-z])|{_TEXT}\bdeg(?:rees?)?\b\s*\}}?)":
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
    r"(?<![\\A-Za-z])(?:infinity|oo)(?![A-Za-z])": r"\\infty ",
    rf"(?<![\\A-Za-z])({_FUNCTIONS})(?![A-Za-z])": r"\\\1 ",
    r"\+(?=\s*\\infty)": "",
    r"\\sqrt\s*\(([^()]*)\)": r"\\sqrt{\1}",
    r"\\sqrt\s*(\d+|[A-Za-z]|\\pi(?![a-z]))": r"\\sqrt{\1}",
    r"\\frac\s*(\d|[A-Za-z])(?=\s*[\d\w{\\])": r"\\frac{\1}",
    rf"\\frac\s*{_GROUP}\s*(\d|[A-Za-z]|\\pi(?![a-z]))": r"\\frac\1{\2}",
    r"(?<![\w.}/^)])(\d+)\s*/\s*(\d+)(?![\d.]|\s*/)": r"\\frac{\1}{\2}",
    r"\^\s*\(([^()]*)\)": r"^{\1}",
    r"\^\s*(-\s*\d+|\d{2,})": r"^{\1}",
    r"([_^])\s*\{\s*([A-Za-z\d])\s*\}": r"\1\2",
    rf"_\{{?{_TEXT}({'|'.join(_NUMERALS)})\s*\}}?\}}?": lambda m: f"_{{{_NUMERALS[m[1]]}}}",
    rf"\s*\(?{_TEXT}\bbase[ -](\d+)\s*\}}?\)?$": r"_{\1}",
}  # fmt: skip
_PATTERNS = [(re.compile(pattern), to) for pattern, to in _RULES.items()]

#: Unit -> its other spellings, in the singular.
_UNITS = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre",
    "km": "kilometer kilometre", "in": "inch inche", "ft": "foot feet", "yd": "yard", "mi": "mile",
    "g": "gram gm", "kg": "kilogram", "lb": "lbs", "s": "second sec", "min": "minute",
    "h": "hour hr", "day": "", "week": "", "month": "", "year": "yr", "dollar": "usd buck",
    "cent": "", "euro": "€ eur", "pound": "£", "yen": "¥", "degree": "", "degreeC": "",
    "degreeF": "", "mi/h": "mph", "km/h": "kmph kph", "l": "liter litre",
    "ml": "milliliter millilitre", "%": "",
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
    """An answer in normal form, stripped."""
    if not text.isascii():
        for mark, digits in _SCRIPTS.items():
            text = re.sub(f"[{digits}]+", rf"{mark}{{\g<0>}}", text)
            text = text.translate(str.maketrans(digits, "0123456789+-"))
        text = re.sub("[¼-¾⅐-⅞]", lambda m: " {}/{} ".format(*_halves(m[0])), text)
    text = stripped(text.translate(_TABLE))
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)  # escaped twice
    for pattern, to in _PATTERNS:
        text = pattern.sub(to, text)
    text = " ".join(stripped(text).split())
    return text if _BRACKET.search(text) else _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)


def _halves(fraction: str) -> list[str]:
    return unicodedata.normalize("NFKC", fraction).split("\u2044")


def compact(text: str) -> str:
    """A text without redundant spaces: all but those between two digits or two letters."""
    return re.sub(
        r"(?<![\dA-Za-z]) | (?![\dA-Za-z])|(?<=\d) (?=[A-Za-z])|(?<=[A-Za-z]) (?=\d)", "", text
    )


def split_unit(text: str) -> tuple[str, str | None]:
    """A quantity without its unit, and the unit: None without one, "" for an unknown one."""
    unit = None
    if before := _CURRENCY.match(text):
        unit = _named(next(filter(None, before.groups()[1:])))
        text = before[1] + text[before.end() :]
    if behind := _UNIT.search(text):
        unit = unit or _named(behind[0])
        text = text[: behind.start()]
    return text.strip(), unit


def _named(unit: str) -> str:
    """The canonical name of a unit; "" if it is not in the table."""
    words = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", unit).replace(".", "")
    names = [_simple(part) for part in re.split(r"/|\bper\b", words)]
    return "/".join(names) if all(names) else ""


def _simple(unit: str) -> str:
    power = re.search(r"\^\{?([23])", unit)
    name = re.sub(r"\^\{?[23]\}?", "", unit).strip()
    shape = re.match(r"(square|sq|cubic|cu)\s+", name, re.I)
    if shape:
        name = name[shape.end() :]
    exponent = power[1] if power else {"s": "2", "c": "3"}[shape[1][0].lower()] if shape else ""
    name = name if name in _UNIT_OF else name.lower()
    known = _UNIT_OF.get(name) or _UNIT_OF.get(name.removesuffix("s"))
    return f"{known}{exponent}" if known else ""
