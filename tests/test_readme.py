"""README, docs and notebooks: links lead somewhere, commands are parsed, Python runs."""

import json
import re
import sys
import tomllib
from importlib import import_module

import pytest

from jaxs1 import __main__ as script
from jaxs1 import config
from jaxs1.data.records import FORMATS
from tests.conftest import ROOT
from tests.decoding.engines import write_model
from tests.documents import NOTEBOOKS, PAGES, commands, programs, with_tiny_model

COMMANDS = [
    pytest.param(words, id=f"{where}: {' '.join(words)}"[:120])
    for page in PAGES
    for where, words in commands(page)
]
#: Pages with Python; those that train take longer.
PROGRAMS = [
    pytest.param(page, id=page.name, marks=[pytest.mark.slow] * (page in NOTEBOOKS))
    for page in (*PAGES, *NOTEBOOKS)
    if any(programs(page))
]


class Parsed(Exception):
    """Raised in place of what a command would do with its settings."""


@pytest.fixture
def parse_only(monkeypatch):
    """Runs a command's main until it has parsed all of its arguments."""

    def run(module, argv):
        main = import_module(module).main
        plans = module == "jaxs1.plan" and "--decode" not in argv
        parses = 2 if plans else 1  # a plan's own arguments, and those of its recipe

        def parse(*arguments, parser=config.parse, **options):
            nonlocal parses
            settings = parser(*arguments, **options)
            parses -= 1
            if parses == 0:
                raise Parsed
            return settings

        for name, loaded in list(sys.modules.items()):
            is_ours = name.split(".")[0] in ("jaxs1", "convert", "kernels")
            if is_ours and "parse" in vars(loaded) and loaded is not config:
                monkeypatch.setattr(loaded, "parse", parse)
        monkeypatch.chdir(ROOT)
        with pytest.raises(Parsed):
            main(argv)

    return run


def settings_of(words):
    """The module and the arguments of a command that has settings; None for others."""
    modules = dict(script.COMMANDS.values())
    match words:
        case ["jaxs1", *rest] if script.find(rest):
            name, arguments = script.find(rest)
            return script.COMMANDS[name][0], arguments
        case ["python", "-m", module, *arguments] if module in modules and arguments:
            return module, arguments
        case ["sbatch", "configs/launch/slurm.sh", *arguments]:
            return "jaxs1.train", arguments
    return None


def is_possible(words):
    """Whether a command without settings of ours names something that exists."""
    match words:
        case ["jaxs1", "--help" | "--version"] | ["export", _] | ["git", "clone", *_]:
            return True
        case ["python", "-m", module, *_]:
            return module == "venv" or (ROOT / f"{module.replace('.', '/')}.py").exists()
        case ["make", target, *_]:
            return f"\n{target}:" in (ROOT / "Makefile").read_text()
        case ["pip", "install", *packages]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            extras = re.findall(r"[\[,](\w+)(?=[],])", " ".join(packages))
            return set(extras) <= set(project["optional-dependencies"])
        case ["kubectl", "apply", "-f", path]:
            return (ROOT / path).exists()
    return False


@pytest.mark.parametrize("words", COMMANDS)
def test_command_is_parsed(words, parse_only):
    """Unknown flags, wrong values and recipes that do not exist fail here; data may be missing."""
    if command := settings_of(words):
        parse_only(*command)
    else:
        assert is_possible(words), words


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    write_model(folder, context=256)
    return folder


@pytest.mark.parametrize("page", PROGRAMS)
def test_python_runs(page, tiny_model, tmp_path, monkeypatch, capsys):
    """All blocks of a page, one after the other, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for where, source in programs(page):
        exec(compile(with_tiny_model(source, tiny_model), where, "exec"), names)
    assert "llm" in names or "network" in names or page.suffix != ".ipynb"


def test_notebooks_are_stored_without_outputs():
    assert len(NOTEBOOKS) == 2
    for path in NOTEBOOKS:
        notebook = json.loads(path.read_text())
        assert notebook["nbformat"] == 4
        for cell in notebook["cells"]:
            assert not cell.get("outputs") and cell.get("execution_count") is None
            assert all(len(line.rstrip("\n")) <= 120 for line in cell["source"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.split("#")[0]).exists(), target


def test_files_that_are_named_exist():
    for page in PAGES:
        text = page.read_text()
        for path in re.findall(r"\b(?:configs|benchmarks|tests)/[\w./]+\.(?:yaml|py|json)", text):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_every_data_format_is_documented():
    documents = "".join(page.read_text() for page in PAGES)
    for name in FORMATS:
        assert f"| `{name}` |" in documents


def test_readme_is_short():
    """At most 700 words outside of code."""
    from tests.documents import FENCE

    text = FENCE.sub("", (ROOT / "README.md").read_text())
    text = re.sub(r"^ {4}.*$", "", text, flags=re.M)
    assert len(re.findall(r"[A-Za-z][\w'-]*", re.sub(r"\(http\S+\)|`[^`]*`", "", text))) <= 700
