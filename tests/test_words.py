"""The project speaks its field's language: words that it once had for itself do not return.

Read are README and docs, what every command prints for --help, and the public names of the code.
"""

import ast
import re
import sys
from importlib import import_module

import pytest

from jaxs1 import __main__ as script
from tests.conftest import ROOT
from tests.documents import FENCE, PAGES
from tests.test_architecture import files

#: Word of version 0.1, as a pattern -> the field's word. Code is not searched.
WORDS = {
    r"asked": "requested; params, request",
    r"whole": "complete, entire; replicated",
    r"ours|of one's own": "custom, your own; our",
    r"beside": "next to; compared with",
    r"(?:goes|go|going) on": "resumes, continues",
    r"so many": "N, this many",
    r"not here": "for a target, ahead of time",
    r"in words": "human-readable",
    r"nobody(?:'s)?": "unused, reserved",
    r"lies|lie": "is stored in, is located at",
    r"as (?:it is|they are)": "unchanged",
    r"mend(?:s|ed)?": "fix",
    r"for sure": "always",
    r"ways of control": "test-time scaling methods",
    r"cues?": "answer prefix",
    r"narrow": "bf16x3",
    r"slots?": "row, sequence, page offset",
    r"rooms?": "package; max_new_tokens",
    r"chunks? of (?:decode )?steps|decode chunks?": "decode_steps",
    r"openings?": "loading",
    r"mind:": "warning:",
}
#: (page or command, word) -> why it may stand there.
EXCEPTIONS: dict[tuple[str, str], str] = {}

#: Public names of version 0.1, which have others now: see CHANGELOG.md.
NAMES = set(
    re.findall(
        r"\w+",
        """
    Asked Thinking Sampling Script script Slots Start Written Transcript Event Draw Kinds choose
    Completer Opened open_engine Programs PagePool TRASH PADDING HIDDEN Replicas Parallel Partition
    make_partition on_parts pin Qwen linear_narrow narrow OurWeights LiveWeights side_files
    Report from_first say is_first Agreement WAYS way cue max_thinking accumulate final_ratio
    clip_norm lost_after on_too_long max_sequences kv_tokens max_answer min_answer reserve room
    Story Tally Words Scan OwnEngine Endpoint Case Seconds Bed regret join_kernel SPAN
    """,
    )
)
MODULES = set(
    re.findall(
        r"\w+",
        """
    script slots loop completion completer pages replicas opening presets qwen unrolled shards
    boxes copying live control progress on_ray endpoint own_engine models grading work product
    measure
    """,
    )
)


def found(text):
    """Words of the table in a text, each with the line that has it."""
    for line in text.splitlines():
        for pattern, better in WORDS.items():
            if match := re.search(rf"(?<![\w-])(?:{pattern})(?![\w-])", line, re.I):
                yield match[0], f"{match[0]!r} ({better}) in: {line.strip()}"


def unexpected(where, text):
    return [line for word, line in found(text) if (where, word.lower()) not in EXCEPTIONS]


def test_the_search_finds_words_and_no_parts_of_words():
    text = "It is whole, as it is.\nA narrowing, a cued-up room-mate, in the classroom.\n"
    assert [word for word, _ in found(text)] == ["whole", "as it is"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages(page):
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))
    assert not unexpected(page.name, re.sub(r"^ {4}.*$", "", prose, flags=re.M))


@pytest.mark.parametrize("flags", [(), ("--decode",)], ids=" ".join)
@pytest.mark.parametrize("name", script.COMMANDS)
def test_help(name, flags, monkeypatch, capsys):
    if flags and name != "plan":
        pytest.skip("only plan has two parsers")
    monkeypatch.setattr(sys, "argv", [f"jaxs1 {name}"])
    main = import_module(script.COMMANDS[name][0]).main
    with pytest.raises(SystemExit):
        main([*flags, "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: jaxs1 {name}")
    assert not unexpected(name, shown)


def test_help_of_the_script():
    assert not unexpected("jaxs1", script.usage("jaxs1"))


def public_names(tree):
    """Classes, functions, constants and fields of dataclasses that do not begin with `_`."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from public_names(node)
        if isinstance(node, ast.Assign):
            yield from (t.id for t in node.targets if isinstance(t, ast.Name))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def test_names_of_the_code():
    """Exact names only: `Thinking` returns, `ThinkingParams` stays."""
    old = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files()
        for name in public_names(ast.parse(path.read_text()))
        if name in NAMES
    ]
    assert not old, "\n".join(old)


def test_names_of_modules():
    old = [str(p.relative_to(ROOT)) for p in files() if p.stem in MODULES]
    assert not old, "\n".join(old)
