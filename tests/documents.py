"""What the documents show: commands, Python blocks and notebooks, as text.

Blocks are fenced (```bash, ```python) or indented by four spaces (commands).
"""

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.M | re.S)
#: Words that commands begin with.
PROGRAMS = ("jaxs1", "python", "make", "pip", "sbatch", "kubectl", "export")
#: Models that the documents name; tests put a tiny one in their place.
MODEL = re.compile(r'"(?:(?:Qwen|simplescaling)/[\w.-]+|demo/sft(?:/hf)?)"')


class Block(NamedTuple):
    """A code block, with the page and the line that it begins in."""

    where: str
    language: str
    text: str


def blocks(page: Path):
    """All code blocks of a page."""
    text = page.read_text()
    name = page.relative_to(ROOT)
    for match in FENCE.finditer(text):
        line = text[: match.start()].count("\n") + 1
        yield Block(f"{name}:{line}", match[2], re.sub(rf"^{match[1]}", "", match[3], flags=re.M))
    plain = FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)
    for match in re.finditer(r"(?<=\n)\n((?: {4}[^\n]*\n)+)", plain):
        line = plain[: match.start(1)].count("\n") + 1
        yield Block(f"{name}:{line}", "", re.sub(r"^ {4}", "", match[1], flags=re.M))


def commands(page: Path):
    """All command lines of a page as (where, words): of blocks, and inline ones with arguments."""
    for block in blocks(page):
        if block.language in ("bash", "sh", "console", "") and not is_picture(block):
            lines = re.sub(r"\\\n\s*", " ", block.text).splitlines()
            prompts = [line[2:] for line in lines if line.startswith("$ ")]
            for line in prompts or lines:
                if words := shlex.split(line, comments=True):
                    yield block.where, words
    text = FENCE.sub("", page.read_text())
    for match in re.finditer(r"(?<!`)`((?:jaxs1|python -m) [^`]+)`(?!`)", text):
        words = shlex.split(match[1].replace("\n", " "))
        if any(word.startswith("--") for word in words):
            yield f"{page.relative_to(ROOT)}: `{match[1]}`", words


def is_picture(block: Block) -> bool:
    """Whether a block without a language is a picture or a table in text, not commands."""
    return block.language == "" and block.text.split(maxsplit=1)[0] not in (*PROGRAMS, "$")


def programs(page: Path):
    """The Python blocks of a page or the code cells of a notebook, as (where, source)."""
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text())["cells"]
        for number, cell in enumerate(cells):
            if cell["cell_type"] == "code":
                yield f"{page.name}, cell {number}", "".join(cell["source"])
        return
    yield from ((block.where, block.text) for block in blocks(page) if block.language == "python")


def with_tiny_model(source: str, folder: Path) -> str:
    """A program that loads a tiny model wherever it names a real one."""
    return MODEL.sub(repr(str(folder)), source)
