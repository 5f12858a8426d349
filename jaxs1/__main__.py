"""`jaxs1 COMMAND ...`, also as `python -m jaxs1 COMMAND ...`.

`jaxs1 train ARGUMENTS` is `python -m jaxs1.train ARGUMENTS`. Nothing is imported before it is known
which command runs, so that `jaxs1 --help` answers at once.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from jaxs1 import __version__

#: Command -> its module, and what it does. Names of two words come in groups.
COMMANDS = {
    "generate": ("jaxs1.generate", "complete prompts within a thinking budget"),
    "train": ("jaxs1.train", "fine-tune a model, or train one from scratch"),
    "grpo": ("jaxs1.grpo", "reinforcement learning on questions, within thinking budgets"),
    "evaluate": ("jaxs1.evaluate", "measure accuracy on a benchmark at several thinking budgets"),
    "serve": ("jaxs1.serve", "serve a model with OpenAI's API, within thinking budgets"),
    "curate": ("jaxs1.curate", "select training data from a pool of questions"),
    "traces": ("jaxs1.traces", "let a teacher write traces, and keep those that are right"),
    "plan": ("jaxs1.plan", "compile a run for a target: memory, time and cost, without hardware"),
    "demo": ("jaxs1.demo", "train and evaluate a tiny reasoning model on this CPU"),
    "convert from_hf": ("convert.from_hf", "convert a Hugging Face model to a checkpoint"),
    "convert to_hf": ("convert.to_hf", "export a checkpoint or a run to a Hugging Face folder"),
    "convert from_gguf": ("convert.from_gguf", "convert a GGUF file to a Hugging Face folder"),
    "convert check": ("convert.check", "compare the logits of two models"),
    "kernels bench": ("kernels.bench", "time the Triton kernels on an NVIDIA GPU"),
    "kernels resources": ("kernels.resources", "show registers and spills of the Triton kernels"),
}


def usage(program: str) -> str:
    """The text of `--help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {program} COMMAND [ARGUMENTS]",
            "",
            "s1 (simple test-time scaling) in JAX.",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            f"  {'--help':{width}}  show this help; after a command, explain its arguments",
            f"  {'--version':{width}}  show the version",
        ]
    )


def find(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """The command that a command line begins with, and its arguments; None if there is none."""
    for length in (1, 2):
        if (name := " ".join(words[:length])) in COMMANDS:
            return name, list(words[length:])
    return None


def unknown(program: str, words: Sequence[str]) -> str:
    """One line about a command that does not exist."""
    import difflib

    group = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    given = " ".join(words[:2] if group else words[:1])
    near = difflib.get_close_matches(given, COMMANDS, n=1, cutoff=0.5)
    if group and len(words) == 1:
        hint = f"give one of {', '.join(group)}"
    else:
        hint = f"did you mean {program} {near[0]}?" if near else f"see {program} --help"
    return f"error: {given}: no such command; {hint}"


def main() -> None:
    """Run the command that `sys.argv` names; exits with its status, 2 if there is none."""
    script = Path(sys.argv[0]).name == "jaxs1"
    program, words = "jaxs1" if script else "python -m jaxs1", sys.argv[1:]
    if words[:1] in (["--help"], ["-h"], ["help"]):
        print(usage(program))
    elif words[:1] == ["--version"]:
        print(f"jaxs1 {__version__}")
    elif not words:
        print(usage(program), file=sys.stderr)
        sys.exit(2)
    elif found := find(words):
        from jaxs1.config import run_command

        name, arguments = found
        sys.argv = [f"{program} {name}", *arguments]  # the parser's help names the command by it
        run_command(import_module(COMMANDS[name][0]).main)
    else:
        print(unknown(program, words), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
