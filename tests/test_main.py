"""The installed script `jaxs1`: its commands, its help, and what it says to a wrong one."""

import re
import subprocess
import sys
import time

import pytest

import jaxs1
from jaxs1 import __main__ as script
from jaxs1.config import as_typed
from tests.conftest import ROOT


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", "jaxs1", *words], cwd=ROOT, capture_output=True, text=True
    )


def test_help_lists_every_command_once_and_fits_a_terminal():
    shown = run("--help").stdout
    for name, (_, text) in script.COMMANDS.items():
        assert len(re.findall(rf"^  {name} +{re.escape(text)}$", shown, re.M)) == 1
    assert max(map(len, shown.splitlines())) <= 88
    assert run("-h").stdout == run("help").stdout == shown
    nothing = run()
    assert (nothing.returncode, nothing.stderr, nothing.stdout) == (2, shown, "")


def test_help_and_version_are_quick():
    """Next to a bare interpreter, so that a busy machine does not matter."""
    program = "import sys; from jaxs1.__main__ import main; sys.argv[1:] = ['--help']; main()"
    program += "; assert not {'jax', 'numpy', 'jsonargparse', 'yaml'} & set(sys.modules)"
    assert run("--version").stdout == f"jaxs1 {jaxs1.__version__}\n"

    def seconds(code):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
        return time.perf_counter() - start

    assert min(seconds(program) for _ in range(5)) - min(seconds("") for _ in range(5)) < 0.3


def test_every_module_with_a_main_is_a_command():
    """A file that runs a command can be started by the script, and nothing else can.

    `jaxs1.lm_eval` is the command of another project, lm-evaluation-harness.
    """
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in ("jaxs1", "convert", "kernels")
        for path in (ROOT / folder).rglob("*.py")
        if "run_command(main)" in path.read_text()
    }
    commands = {module for module, _ in script.COMMANDS.values()}
    assert modules - {"jaxs1.lm_eval"} == commands


def test_commands_run_as_modules_do():
    arguments = ["--config", "configs/tiny.yaml", "--optimiser.name", "x"]
    done = run("train", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: optimiser.name: no such field; did you mean optimizer")
    assert done.stderr.endswith("see python -m jaxs1 train --help\n")


@pytest.mark.parametrize(
    ("program", "command", "typed"),
    [
        ("jaxs1 train", "python -m jaxs1.train", "jaxs1 train"),
        ("jaxs1 plan", "python -m jaxs1.plan --decode", "jaxs1 plan --decode"),
        (
            "python -m jaxs1 convert check",
            "python -m convert.check",
            "python -m jaxs1 convert check",
        ),
        ("/a/jaxs1/train.py", "python -m jaxs1.train", "python -m jaxs1.train"),
    ],
)
def test_help_names_what_was_typed(program, command, typed, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program])
    assert as_typed(command) == typed


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], "trian: no such command; did you mean jaxs1 train?"),
        (
            ["convert", "form_hf"],
            "convert form_hf: no such command; did you mean jaxs1 convert from_hf?",
        ),
        (["kernels"], "kernels: no such command; give one of kernels bench, kernels resources"),
        (["x9"], "x9: no such command; see jaxs1 --help"),
    ],
)
def test_unknown_command_is_one_line(words, line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/bin/jaxs1", *words])
    with pytest.raises(SystemExit) as exit_:
        script.main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err == f"error: {line}\n"
