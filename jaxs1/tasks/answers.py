r"""Find the final answer that a text states.

The same order is used in evaluation and curation, for a model's output and for gold answers:

1. the last \boxed{...}, unless a stated final answer ("Answer: ...", "The answer is ...", GSM8K's
   "#### NUMBER" as the last line) follows it;
2. the last stated answer;
3. what follows "####" in the last line;
4. a last paragraph that consists of a number, or of an expression in math delimiters or emphasis;
5. the text itself if it is one line.

Surrounding punctuation, emphasis and math delimiters are removed from the result.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

#: To ASCII: other spaces, invisible characters, full-width forms, the minus sign, CJK punctuation.
PLAIN = {
    **dict.fromkeys(map(ord, "\u00a0\u2002\u2003\u2007\u2009\u200a\u202f\u3000"), " "),
    **dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"), ""),
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},
    **{ord(a): b for a, b in zip("\u2212\u3002\u3001", "-.,", strict=True)},
}
CHINESE = "\u4e00-\u9fff"
#: Longest answer [characters], and number of the last boxes or statements to consider: limits the
#: time spent on a model that repeats itself.
WINDOW, LAST = 2000, 64

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
#: \boxed 42, \boxed\frac{1}{2}: without braces to the next space or end of math.
_BARE = re.compile(r"(?:\{[^{}]*\}|\\[A-Za-z]+\s*(?=[\\{\d])|\\[A-Za-z%]+|[^\s$\\{}])+")
#: What may stand between two boxes of one list; one of _AND must be in it.
_BETWEEN = re.compile(
    r"(?:[\s$*_,;&]|\\[()\[\],;:! ]|\\q?quad\b|\\text\s*\{[\s,]*(?:and|or)[\s,]*\}|\b(?:and|or)\b"
    r"|[和或]|[A-Za-z](?:_\{?\w+\}?)?\s*=)*"
)
_AND = re.compile(r"[,;&和或]|\b(?:and|or)\b")
_SET = re.compile(r"(?:\\left\s*)?\\\{")  # complete by itself, and no item of a list

#: For lower-case text. Each begins with letters, which makes the search many times faster.
_KEYS = [re.compile(word) for word in (r"answers?(?![a-z])", r"ans(?=[ \t]*[:=])", "答案")]
#: Words before "answer" that mark the final one, and words that begin such a sentence.
_FINAL = {
    "the", "my", "our", "final", "correct", "right", "required", "desired", "requested",
    "numerical", "exact", "short",
}  # fmt: skip
_BEGIN = _FINAL | {
    "so", "thus", "therefore", "hence", "then", "finally", "and", "now", "consequently", "in",
    "conclusion", "this", "means", "that",
}  # fmt: skip
_WRONG = {"wrong", "incorrect", "false", "erroneous", "mistaken"}
_COLON = re.compile(
    r"[*_`]*(?:[ \t]*\([^()\n]{0,40}\))?[*_`]*[ \t]*[:=\u2014][*_`]*|>|[ \t]*[是为][ \t]*:?"
)
_IS = re.compile(
    r"(?:'s|[ \t]+(?:(?:to|for|of) [^.\n:]{0,80}?[ \t])?"
    r"(?:is|are|equals|(?:would|will|must|should) be))\b"
    r"(?:,? (?:therefore|thus|then),?)?[ \t]*:?[*_`]*",
    re.I,
)
_HEADING = re.compile(r"[*_`# \t]*(?=\n)")
_FOLLOWS = re.compile(r"[*_`# \t]*(?=\n)|[ \t]+(?=[-\d$\\(])")
#: "So 42 is the answer."
_BEFORE = re.compile(
    r"(\$[^$]+\$|\\\(.+?\\\)|\S+)\s+(?:is|are)\s+(?:the|our|my)\s+(?:(?:final|correct)\s+)*$"
)
_SENTENCE = re.compile(
    rf"(?<=[.!?])[*_`$]*\s+(?=[\"'(*_\[]*(?:[A-Z]|[{CHINESE}]))|(?<=[.!])(?=[{CHINESE}])"
)
#: What separates an answer from the rest of its sentence, and words that may precede it.
_MORE = re.compile(
    r"[\s,;]+(?:because|since|where|which|as|so|i\.e\.|that is|when|for|if|(?:and |but )?not"
    r"|rather than)\s"
    r"|[ \t]\((?=[^()]*[a-z]{3})[^()\\]*\)$"
)
_PROSE = re.compile(r"[A-Za-z$\\][^\n]*?\s(?:is|are|equals)\s*:?\s+")
_ADVERBS = re.compile(
    r"(?:(?:so|thus|therefore|hence|approximately|about|simply|just|exactly|only|indeed|clearly"
    r"|equal to|given by)[\s,:]+)+",
    re.I,
)
#: Begins an expression, a number or the letter of a choice, but not a word.
_MATH = re.compile(
    r"[-+(\[{|.<>\s\"'#*_`\u00b1\u221a]*(?:[$€£¥\\]|\d|[\u03c0\u221e\u2205])"
    r"|[(\[{-]*[A-Za-z](?:_\w+|\^\S+|\([a-z]\))?\s*(?:[-+=<>*/^,)\]}\\\u2264\u2265\u2208]|$)"
    r"|\(?[A-J](?:[).:]|(?=,))|(?:option|choice)\b",
    re.I,
)
NUMBER = re.compile(r"[-+]?(?:\\?[$€£¥])?[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+|\s*\\?%)?")
_HASHES = re.compile(r"####[ \t]*([^\n]*?)\s*\Z")
_DISPLAY = {"$$": "$$", "\\[": "\\]", "```": "```"}
_ENVIRONMENT = re.compile(r"\\begin\{(align|equation|gather)(\*?)\}(.*?)\\end\{\1\2\}", re.S)
_INLINE = re.compile(r"(?<!\\)\$\$?(.+?)(?<!\\)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)

_AROUND = re.compile(
    r"^(?:[,;:=*`~_#]|\\[,;:! ]|\\q?quad(?![a-z])|\\(?:display|text)style(?![A-Za-z]))+"
    r"|(?<!\\)(?:[.,;:?*`~#]|(?<!\^)_|\\[,;:! ]|\\\\|\\q?quad)+$"
)
_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it|sf)|mbox|boxed|fbox|bm|boldsymbol)\s*(?=\{)|(?=\{)"
)
_PAIRS = (("\\(", "\\)"), ("\\[", "\\]"), ('"', '"'), ("\u201c", "\u201d"))


class _Found(NamedTuple):
    """An answer and where it begins; `sure`: 0 vague words, 1 an answer, 2 the sentence's point."""

    start: int
    text: str
    sure: int


def final_answer(text: str) -> str | None:
    """The final answer of a text, stripped; None if it states none. Order: see the module."""
    text = text if text.isascii() else text.translate(PLAIN)
    box, stated = _last_box(text), [*_stated(text)]
    hashes = _HASHES.search(text, max(0, len(text) - WINDOW))
    if hashes and NUMBER.fullmatch(number := stripped(hashes[1])):
        stated.append(_Found(hashes.start(), number, 2))
    if box:
        later = [s for s in stated if s.sure == 2 and s.start > box.start]
        return (later or [box])[-1].text
    if stated:
        return ([s for s in stated if s.sure] or stated)[-1].text
    if hashes:
        return stripped(hashes[1]) or None
    line = text.strip()
    if "\n" in line:
        return _alone(line[-WINDOW:])
    if len(line) > WINDOW:
        return line
    return None if _BOX.search(line) else _value(line) or None  # a box was cut off


def stripped(text: str) -> str:
    """A text without surrounding punctuation, emphasis, delimiters and one \\text{}."""
    before = None
    while before != text:
        before = text
        text = _AROUND.sub("", text.strip()).strip()
        inside = re.sub(r"^\$+|(?<!\\)\$+$", "", text)
        text = text if re.search(r"(?<!\\)\$", inside) else inside
        text = _unwrapped(text)
    return text


def _unwrapped(text: str) -> str:
    """A text without the pair of delimiters, quotes or braces that encloses it."""
    for opening, closing in _PAIRS:
        if text.startswith(opening) and closing not in text[len(opening) : -len(closing)]:
            return text[len(opening) :].removesuffix(closing)
        if text.endswith(closing) and opening not in text[: -len(closing)]:
            return text.removesuffix(closing)
    command = _COMMAND.match(text)
    if command and _closing(text, command.end()) == len(text) - 1:
        return text[command.end() + 1 : -1]
    return text


def _closing(text: str, opening: int) -> int:
    """Index of the brace that closes the one at `opening`; -1 if not within the window."""
    depth, escaped = 0, False
    for index in range(opening, min(len(text), opening + WINDOW)):
        letter = text[index]
        if not escaped:
            depth += (letter == "{") - (letter == "}")
            if not depth:
                return index
        escaped = letter == "\\" and not escaped
    return -1


def _boxes(text: str) -> Iterator[tuple[int, int, str]]:
    """Begin, end and content of closed, non-empty boxes; the innermost of nested ones."""
    end = 0
    for command in [*_BOX.finditer(text)][-LAST:]:
        start = command.end()
        if command.start() < end:
            continue  # inside the last one
        if text[start : start + 1] == "{":
            closing = _closing(text, start)
            content, end = (text[start + 1 : closing], closing + 1) if closing > 0 else ("", end)
        else:
            bare = _BARE.match(text, start, start + WINDOW)
            content, end = (bare[0], bare.end()) if bare else ("", end)
        inner = _last_box(content)
        if content := inner.text if inner else stripped(content):
            yield command.start(), end, content


def _last_box(text: str) -> _Found | None:
    """The last box, with preceding ones of the same list, "\\boxed{1} and \\boxed{2}"."""
    found = [*_boxes(text)]
    group = found[-1:]
    for start, end, content in [] if group and _SET.match(group[0][2]) else found[-2::-1]:
        between = text[end : group[0][0]]
        if not (_BETWEEN.fullmatch(between) and _AND.search(between)) or _SET.match(content):
            break
        group.insert(0, (start, end, content))
    if not group:
        return None
    return _Found(group[-1][0], ", ".join(dict.fromkeys(content for *_, content in group)), 2)


def _stated(text: str) -> Iterator[_Found]:
    """All statements of an answer, in order."""
    small = text.lower()
    small = small if len(small) == len(text) else text
    found = [match for keys in _KEYS for match in keys.finditer(small)]
    for key in sorted(found, key=re.Match.start)[-LAST:]:
        line = text[max(text.rfind("\n", 0, key.start()) + 1, key.start() - 200) : key.start()]
        if not re.search(r"[A-Za-z/]$", line):  # no </answer>
            yield from _statement(text, key, line)


def _statement(text: str, key: re.Match[str], line: str) -> Iterator[_Found]:
    """The answer stated around one word "answer"; `line` is the text before it."""
    words = re.findall(r"[a-z']+", re.split(r"[.!?:;][\s*_]", line)[-1].lower())
    if _WRONG.intersection(words[-2:]):
        return
    final = not words or words[-1] in _FINAL
    colon = _COLON.match(text, key.end())
    mark = colon or (final and _IS.match(text, key.end()))
    if not mark and _FINAL.issuperset(words):
        mark = (_FOLLOWS if words[-1:] == ["final"] else _HEADING).match(text, key.end())
    if mark and (value := _value(_block(text[mark.end() : mark.end() + WINDOW]), stated=True)):
        sure = bool(_MATH.match(value)) or (bool(colon) and " " not in value)
        yield _Found(key.start(), value, sure + (sure and final and _BEGIN.issuperset(words)))
    elif not mark and (before := _BEFORE.search(line)) and _MATH.match(stripped(before[1])):
        yield _Found(key.start(), stripped(before[1]), 1)


def _block(text: str) -> str:
    """The content of a statement: the rest of its line or, if empty, what follows."""
    text = re.sub(r"^(?:[*_`: \t]*\n)*[*_: \t]*", "", text)
    for opening, closing in _DISPLAY.items():
        if text.startswith(opening):
            inside, found, _ = text[len(opening) :].partition(closing)
            return inside if found else inside.partition("\n")[0]
    if environment := _ENVIRONMENT.match(text):
        return environment[3].replace("&", "")
    return text.partition("\n")[0].partition("</")[0]


def _value(text: str, stated: bool = False) -> str:
    """The answer in a sentence."""
    if stated:
        text = _SENTENCE.split(text)[0]
        text = re.sub(r"(?<=[^\s\\])\s*!+\s*[*_]*$", "", text)  # an exclamation, no factorial
    text = _ADVERBS.sub("", stripped(text), count=1)
    while (prose := _PROSE.match(text)) and _MATH.match(text, prose.end()):
        text = text[prose.end() :]
    if (more := _MORE.search(text)) and _MATH.match(text[: more.start()]):
        text = text[: more.start()]
    outside = _INLINE.sub("", text)
    if outside != text and not re.search(r"[\d\\{}^=]", outside):
        text = ", ".join(stripped("".join(filter(None, x))) for x in _INLINE.findall(text))
    return stripped(text)


def _alone(text: str) -> str | None:
    """The last paragraph if it is a number, or a displayed expression other than a relation."""
    last = re.split(r"\n\s*\n|\n(?=[^\n]*\Z)", text)[-1].strip()
    display = re.search(r"(?:\$\$|\\\[)(?:(?!\\[\[\]])[^$])*(?:\$\$|\\\])[.,]?\Z", text)
    bare = stripped(display[0] if display else last)
    if NUMBER.fullmatch(re.sub(r"^[A-Za-z]\w?\s*=\s*", "", bare)):
        return bare
    word = display and re.fullmatch(r"(?!QED)[A-Za-z]{2,}", bare)
    apart = display or re.fullmatch(r"(?:\*\*|\$|\\\().*(?:\*\*|\$|\\\))[.,]?(?:\*\*)?", last)
    relation = re.search(r"[=<>\n]|\\(?:[lg]eq?|\w*square|equiv|approx|mid)\b", bare)
    return bare if word or (apart and _MATH.match(bare) and not relation) else None
