"""Every field a user can set, and how YAML and the command line become dataclasses.

A recipe is a YAML file; any field can be overridden on the command line:

    python -m jaxs1.train --config configs/s1_32b.yaml --optimizer.learning_rate 2e-5

`parse` returns frozen dataclasses or raises `UserError`; `run_command` prints a `UserError` as one
line and exits with status 2. This file knows no other file of the package.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import yaml

T = TypeVar("T")


class UserError(ValueError):
    """Something the user can mend. One line: field, value, constraint, remedy."""


def parse(
    schema: type[T], argv: Sequence[str], *, command: str, positionals: Sequence[str] = ()
) -> T:
    """Build `schema` from `--config FILE.yaml` and overrides in `argv`.

    Args:
        schema: a dataclass whose docstring's `Args:` explain every field
        argv: command line without the program's name
        command: how the user calls it, for the help text
        positionals: fields of `schema` that are given by position

    Raises:
        UserError: one line that names the field, its value, the constraint and the remedy.
    """
    parser = jsonargparse.ArgumentParser(
        prog=command,
        description=(schema.__doc__ or "").split("\n")[0],
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", action="config", help="YAML recipe; later arguments override it"
    )
    for name in positionals:
        parser.add_argument(name, type=str)
    parser.add_class_arguments(schema, skip=set(positionals))
    try:
        namespace = parser.parse_args(_with_current_names(argv))
        values = namespace.as_dict()
        values.pop("config", None)
        return _build(schema, values)
    except jsonargparse.ArgumentError as error:
        raise UserError(_explain(str(error), schema, command)) from None


#: Fields of version 0.1 -> their names now. Recipes, flags and saved settings may still use them.
RENAMED = {
    "accumulate": "gradient_accumulation_steps",
    "optimizer.final_ratio": "optimizer.min_lr_ratio",
    "optimizer.clip_norm": "optimizer.max_grad_norm",
    "lora.targets": "lora.target_modules",
    "checkpoint.keep": "checkpoint.max_to_keep",
    "distributed.lost_after": "distributed.heartbeat_timeout",
    "data.on_too_long": "data.overlong",
    "limits.max_sequences": "limits.max_num_seqs",
    "limits.kv_tokens": "limits.kv_cache_tokens",
    "limits.context": "limits.max_seq_len",
    "limits.chunk": "limits.decode_steps",
    "limits.prefill": "limits.prefill_chunk_tokens",
    "thinking.cue": "thinking.answer_prefix",
    "thinking.max_answer": "thinking.max_answer_tokens",
    "thinking.min_answer": "thinking.min_answer_tokens",
    "sweep.max_thinking": "sweep.budget",
}


def current_names(
    settings: dict[str, Any], group: str = "", *, notify: bool = True
) -> dict[str, Any]:
    """Settings with the fields of `RENAMED` under their current names.

    Args:
        settings: nested dictionaries, or one of dotted names
        group: dotted name of the dictionary that holds them
        notify: print a line about each renamed field
    """
    current = {}
    for name, value in settings.items():
        old = f"{group}.{name}" if group else str(name)
        new = RENAMED.get(old, old)
        if new != old and notify:
            print(f"note: {old} is now called {new}", file=sys.stderr)
        inner = current_names(value, old, notify=notify) if isinstance(value, dict) else value
        current[new.removeprefix(f"{group}.") if group else new] = inner
    return current


def changed_settings(saved: dict[str, Any], current: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ: dotted name -> (saved, current) value, sorted; a missing one is None.

    Args:
        saved: nested settings as read from JSON, possibly under names of earlier versions
        current: nested settings
    """
    old = _flat(current_names(saved, notify=False))
    new = _flat(json.loads(json.dumps(current)))  # tuples become lists
    names = sorted(old.keys() | new.keys())
    return {n: (old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)}


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, dict) and value
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def _with_current_names(argv: Sequence[str]) -> list[str]:
    """The arguments, and the recipes they name, in current names."""
    current: list[str] = []
    for word in argv:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            (new,) = current_names({name[2:]: None})
            word = f"--{new}{equals}{value}"
        elif current and current[-1] == "--config":
            word = _current_recipe(word)
        current.append(_current_recipe(word) if word.startswith("--config=") else word)
    return current


def _current_recipe(argument: str) -> str:
    """A recipe's path; its content instead where that uses old names."""
    flag, path = ("--config=", argument[9:]) if argument.startswith("--config=") else ("", argument)
    try:
        recipe = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return argument  # the parser says what is wrong
    if not isinstance(recipe, dict):
        return argument
    current = current_names(recipe)
    return argument if current == recipe else flag + yaml.safe_dump(current, sort_keys=False)


def to_yaml(config: Any) -> str:
    """The configuration as YAML that `--config` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def run_command(main: Callable[[Sequence[str]], int | None]) -> None:
    """Run a command's `main(argv)`; a `UserError` becomes one line on stderr and exit status 2."""
    try:
        sys.exit(main(sys.argv[1:]) or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _build(schema: type[T], values: dict[str, Any]) -> T:
    """Nested dictionaries to nested dataclasses (jsonargparse has checked keys and types)."""
    hints = {f.name: f.default_factory for f in dataclasses.fields(schema)}  # type: ignore[arg-type]
    built = {}
    for name, value in values.items():
        group = hints[name]
        if dataclasses.is_dataclass(group) and isinstance(group, type):
            value = _build(group, value)
        built[name] = value
    return schema(**built)


def _field_names(schema: Any, prefix: str = "") -> list[str]:
    names = []
    for f in dataclasses.fields(schema):
        names.append(prefix + f.name)
        if dataclasses.is_dataclass(f.default_factory):
            names += _field_names(f.default_factory, f"{prefix}{f.name}.")
    return names


def _explain(message: str, schema: type, command: str) -> str:
    """One line from jsonargparse's message, with the nearest known field where one is unknown."""
    message = one_line(message)
    unknown = None
    if match := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        unknown = f"{match[1]}.{match[2]}"
    elif match := re.search(
        r"(?:[Oo]ption '|[Uu]nrecognized arguments: --)([\w.]+)(?:' is not accepted)?", message
    ):
        unknown = match[1]
    if unknown:
        group = unknown.rpartition(".")[0]
        known = _field_names(schema)
        siblings = [name for name in known if group and name.startswith(f"{group}.")]
        near = difflib.get_close_matches(unknown, siblings or known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{unknown}: no such field; {hint}see {command} --help"
    if match := re.search(r'Parser key "([\w.]+)": (.*)', message):
        wanted = re.sub(r"<class '(\w+)'>", r"\1", match[2]).replace("tuple[str, ...]", "tuple")
        wanted = wanted.replace("tuple", "a list")
        wanted = re.sub(r"typing\.Literal\[(.*?)\]", lambda m: m[1].replace("'", ""), wanted)
        if union := re.search(r"Subtypes: \[(.*)\] Errors.*Given value: (.*)", wanted):
            kinds = union[1].replace("NoneType", "null").replace(", ", " or ")
            return f"{match[1]}={union[2]}: must be {kinds}; see {command} --help"
        if got := re.search(r"Expected an? (.*?)\.? Got value: (.*)", wanted):
            return f"{match[1]}={got[2]}: must be {got[1]}; see {command} --help"
        return f"{match[1]}: {wanted}; see {command} --help"
    return f"{message}; see {command} --help"


def one_line(message: object) -> str:
    """A message without line breaks, as a `UserError` needs it."""
    return re.sub(r"\s+", " ", str(message)).strip()
