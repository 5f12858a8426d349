"""The wheel: built from a copy of the source, installed elsewhere, used there.

The programs run in an empty folder, without this checkout: `-S` leaves out .pth files, and with
them an editable installation; what jaxs1 depends on is found in the environment of the tests.
"""

import ast
import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import jaxs1
from jaxs1.planning.topology import is_installed
from tests.conftest import ROOT
from tests.decoding.engines import write_model

SOURCES = ("jaxs1", "convert", "kernels", "configs")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
#: The README's first program.
PROGRAM = """
from jaxs1 import LLM, SamplingParams, ThinkingParams
llm = LLM("model")
done = llm.chat("How many primes are below 100?",
                thinking=ThinkingParams(max=8, num_waits=1, max_answer_tokens=4),
                sampling=SamplingParams(temperature=0.7))
print(len(done.thinking_ids), done.usage["thinking_tokens"], done.finish_reason)
"""


def relocate(source):
    """The rewriting that setup.py does, without its setup()."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    tree.body = [n for n in tree.body if not isinstance(n, ast.If | ast.Expr)]
    names = {}
    exec(compile(tree, "setup.py", "exec"), names)
    return names["relocate"](source)


class Moved(ast.NodeTransformer):
    """The same, on syntax trees: names of modules in imports and in strings, nothing else."""

    def rename(self, name):
        return f"jaxs1.{name}" if name.split(".")[0] in ("convert", "kernels") else name

    def visit_ImportFrom(self, node):
        node.module = self.rename(node.module)
        return node

    def visit_Import(self, node):
        for alias in node.names:
            assert self.rename(alias.name) == alias.name or alias.asname, "binds another name"
            alias.name = self.rename(alias.name)
        return node

    def visit_Constant(self, node):
        if isinstance(node.value, str):
            text = re.sub(r"-m (?=(convert|kernels)\.)", "-m jaxs1.", node.value)
            node.value = self.rename(text) if re.fullmatch(r"\w+(\.\w+)+", text) else text
        return node


def test_rewriting_knows_every_form():
    source = (
        "from convert import check\nfrom kernels.launch import Run\nimport kernels.decode as d\n"
        "def f():\n    from kernels import decode\n    return decode.kernels\n"
        'x = "python -m convert.check", "kernels.bench", "kernels", "a convert.py"\n'
        '"""Text.\n\nfrom kernels import nothing: this is prose\n"""\nimport converter, kernels2\n'
    )
    assert relocate(source) == (
        "from jaxs1.convert import check\nfrom jaxs1.kernels.launch import Run\n"
        "import jaxs1.kernels.decode as d\n"
        "def f():\n    from jaxs1.kernels import decode\n    return decode.kernels\n"
        'x = "python -m jaxs1.convert.check", "jaxs1.kernels.bench", "kernels", "a convert.py"\n'
        '"""Text.\n\nfrom kernels import nothing: this is prose\n"""\nimport converter, kernels2\n'
    )
    assert relocate(relocate(source)) == relocate(source)


@pytest.mark.parametrize("folder", ["jaxs1", "convert", "kernels"])
def test_rewriting_changes_names_of_modules_only(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        source = path.read_text()
        rewritten = relocate(source)
        expected = Moved().visit(ast.parse(source))
        assert ast.dump(ast.parse(rewritten)) == ast.dump(expected), path
        assert len(rewritten.splitlines()) == len(source.splitlines())


def test_metadata_is_complete():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"description", "readme", "license", "authors", "keywords", "classifiers"} <= set(
        project
    )
    serve = " ".join(project["optional-dependencies"]["serve"])
    names = ["fastapi", "httptools", "prometheus-client", "uvicorn", "uvloop"]
    assert re.findall(r"[a-z-]+(?=>)", serve) == names
    assert project["scripts"] == {"jaxs1": "jaxs1.__main__:main"}
    assert project["dynamic"] == ["version"]
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[?{re.escape(jaxs1.__version__)}\b", changes, re.M)


def test_tools_have_one_version():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    given = {Path(hook["repo"]).name: hook["rev"] for hook in hooks if "rev" in hook}
    dev = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pinned = dict(entry.split("==") for entry in dev["dev"] if "==" in entry)
    assert given == {
        "ruff-pre-commit": f"v{pinned['ruff']}",
        "codespell": f"v{pinned['codespell']}",
    }


def test_workflows_call_make():
    """Every workflow is YAML; what it runs of ours is a target of the Makefile."""
    made = set()
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for path in (ROOT / ".github" / "workflows").iterdir():
        assert yaml.safe_load(path.read_text())["jobs"], path
        made |= set(re.findall(r"(?:run: make|target:) ([\w-]+)", path.read_text()))
    assert made == {"lint", "test", "coverage", "docs", "dist"}
    assert made <= targets


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir"]
    done = subprocess.run([*build, folder, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory):
    """Runs Python in an empty folder with a model, on the installed wheel."""
    installed, folder = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("elsewhere")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps"]
    options = ["--no-index", "--no-compile", "--target", installed]
    done = subprocess.run([*pip, *options, wheel], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    write_model(folder / "model", context=256)
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    paths = [str(installed), *_dependencies()]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}

    def run(*arguments, status=0):
        command = [sys.executable, "-S", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    run.script = installed / "bin" / "jaxs1"
    return run


def _dependencies():
    """Folders that packages are imported from, without those of this checkout."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path]
    return [f for f in dict.fromkeys(folders) if f and Path(f).resolve() != ROOT.resolve()]


@pytest.mark.slow
def test_wheel_claims_one_name_and_has_all_of_the_source(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        texts = {name: archive.read(name).decode() for name in names if name.endswith(".py")}
        (metadata,) = (archive.read(n).decode() for n in names if n.endswith("/METADATA"))
    info = f"jaxs1-{jaxs1.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"jaxs1", info}
    for folder in SOURCES:
        inside = "jaxs1" if folder == "jaxs1" else f"jaxs1/{folder}"
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                assert f"{inside}/{path.relative_to(ROOT / folder)}" in names
    for name, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [getattr(node, "module", None), *(alias.name for alias in node.names)]
                if isinstance(node, ast.ImportFrom):
                    modules = modules[:1]
                assert not {"convert", "kernels"} & {str(m).split(".")[0] for m in modules}, name
    described = email.message_from_string(metadata)
    assert described["Version"] == jaxs1.__version__
    assert described["Author"] == "jaxs1 developers"
    assert "Project-URL" not in described


@pytest.mark.slow
def test_installed_elsewhere_it_is_the_wheel_that_runs(elsewhere):
    where = elsewhere("-c", "import jaxs1, jaxs1.convert; print(jaxs1.convert.__file__)")
    assert "installed" in where and str(ROOT) not in where
    found = elsewhere(
        "-c", "import importlib.util as u; print(u.find_spec('kernels'), u.find_spec('convert'))"
    )
    assert "installed" not in found and str(ROOT) not in found
    assert elsewhere("-m", "jaxs1", "--version") == f"jaxs1 {jaxs1.__version__}\n"
    assert elsewhere(elsewhere.script, "--version") == f"jaxs1 {jaxs1.__version__}\n"
    assert "usage: jaxs1 convert check " in elsewhere(
        elsewhere.script, "convert", "check", "--help"
    )


@pytest.mark.slow
def test_installed_elsewhere_a_model_answers(elsewhere):
    shown = elsewhere(
        "-m", "jaxs1.generate", "--model", "model", "--prompt", "Hi", "--thinking.max", 4,
        "--thinking.max_answer_tokens", 4,
    )  # fmt: skip
    assert "tokens in" in shown
    thinking, counted, reason = elsewhere("-c", PROGRAM).split()[-3:]
    assert thinking == counted and int(thinking) <= 8 and reason in ("stop", "length")


@pytest.mark.slow
def test_installed_elsewhere_models_are_converted(elsewhere):
    elsewhere(elsewhere.script, "convert", "from_hf", "model", "checkpoint")
    elsewhere("-m", "jaxs1.convert.to_hf", "checkpoint", "exported")
    assert "difference" in elsewhere(elsewhere.script, "convert", "check", "model", "exported")


@pytest.mark.slow
def test_installed_elsewhere_recipes_have_names(elsewhere):
    shown = elsewhere(elsewhere.script, "train", "--config", "s1_32b", "--print_config")
    assert "path: simplescaling/s1K" in shown
    nowhere = elsewhere(elsewhere.script, "train", "--config", "s1_23b", status=2)
    assert nowhere.startswith("error: ") and nowhere.count("\n") == 1 and "s1_32b" in nowhere


@pytest.mark.slow
def test_installed_elsewhere_decoding_is_planned(elsewhere):
    target = ["--target", "h100:1x1"] if is_installed("gpu") else ["--target", "cpu:1"]
    shape = ["--sequences", 1, "--context", 256, "--layers", 1]
    shown = elsewhere(elsewhere.script, "plan", "--decode", *target, *shape)
    assert "fits        yes" in shown
