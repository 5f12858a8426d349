"""From YAML recipes and command lines to dataclasses of settings.

Every field of a recipe can be overridden on the command line:

    python -m jaxs1.train --config s1_32b --optimizer.learning_rate 2e-5

`parse` returns a frozen dataclass or raises `UserError`; `run_command` prints a `UserError` as one
line and exits with status 2.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import jsonargparse
import yaml

from jaxs1.config_errors import explain

T = TypeVar("T")


class UserError(ValueError):
    """An error the user can fix. One line: field, value, constraint, remedy."""


def parse(
    schema: type[T], argv: Sequence[str], *, command: str, positionals: Sequence[str] = ()
) -> T:
    """Build `schema` from `--config RECIPE` and overrides in `argv`.

    Args:
        schema: dataclass whose docstring describes every field under `Args:`
        argv: command line without the program's name
        command: the command as users type it, for the help text
        positionals: fields of `schema` that are positional arguments

    Raises:
        UserError: an unknown field, a value of the wrong type, a missing recipe, ...
    """
    command = as_typed(command)
    parser = jsonargparse.ArgumentParser(
        prog=command,
        usage=" ".join([command, *positionals, "[--config RECIPE] [--FIELD VALUE ...]"]),
        description=(schema.__doc__ or "").split("\n")[0],
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        action="config",
        metavar="RECIPE",
        help="YAML file, or name of a recipe in configs/; later arguments override it",
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
        raise UserError(explain(one_line(error), schema, command)) from None


def override(config: T, changes: Mapping[str, Any], *, command: str) -> T:
    """A copy of a dataclass with some fields replaced, e.g. by an object of a JSONL file.

    Args:
        config: dataclass to copy
        changes: field -> value; for a field that is a dataclass, an object of its fields
        command: the command as users type it, for error messages

    Raises:
        UserError: one line that names the field, its value, the constraint and the remedy.
    """
    schema: Any = type(config)
    changes = current_names(dict(changes))
    _check_null(schema, changes, command)
    parser = _object_parser(schema)
    try:
        base = parser.parse_object(dataclasses.asdict(config))  # type: ignore[call-overload]
        values = parser.parse_object(changes, namespace=base).as_dict()
    except jsonargparse.ArgumentError as error:
        raise UserError(explain(one_line(error), schema, command)) from None
    return _build(schema, values)


@lru_cache
def _object_parser(schema: type) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(schema)
    return parser


def _check_null(schema: Any, changes: Mapping[str, Any], command: str, group: str = "") -> None:
    """Check what `parse_object` does not: null where a field has no null, groups that are none."""
    hints = get_type_hints(schema)
    for name, value in changes.items():
        hint = hints.get(name)
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise UserError(f"{group}{name}: must be an object of fields; see {command} --help")
            _check_null(hint, value, command, f"{group}{name}.")
        elif value is None and hint is not None and type(None) not in get_args(hint):
            raise UserError(
                f"{group}{name}=null: must have a value; leave it out to keep the default"
            )


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
    "thinking.delimiters.stops": "thinking.delimiters.stop",
    "thinking.max_answer": "thinking.max_answer_tokens",
    "thinking.min_answer": "thinking.min_answer_tokens",
    "sweep.max_thinking": "sweep.budget",
}
#: (field, value) of version 0.1 -> the value now.
RENAMED_VALUES = {
    ("impl", "narrow"): "bf16x3",
    ("against", "ours"): "jaxs1",
}


def current_names(
    settings: dict[str, Any], group: str = "", *, notify: bool = True
) -> dict[str, Any]:
    """Settings with the names of `RENAMED` and `RENAMED_VALUES` as they are now.

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
        if isinstance(value, str) and (old, value) in RENAMED_VALUES:
            old_value, value = value, RENAMED_VALUES[old, value]
            if notify:
                print(f"note: {new}={old_value} is now {new}={value}", file=sys.stderr)
        inner = current_names(value, old, notify=notify) if isinstance(value, dict) else value
        current[new.removeprefix(f"{group}.") if group else new] = inner
    return current


def configs_folder() -> Path:
    """The folder of recipes: configs/ of a checkout, or that of an installed package."""
    checkout, package = Path(__file__).parents[1] / "configs", Path(__file__).parent / "configs"
    return package if package.is_dir() else checkout


def find_recipe(name: str, *, setting: str = "config") -> Path:
    """The file of a recipe or of model shapes.

    Args:
        name: path, or name of a file in `configs_folder()`: s1_32b, qwen2.5-7b
        setting: field that holds the name; with "architecture" it must be of model shapes

    Raises:
        UserError: there is no such file.
    """
    configs = configs_folder()
    folder, suffix = (configs, ".yaml") if setting == "config" else (configs / "models", ".json")
    for path in (Path(name), folder / f"{name}{suffix}", configs.parent / name):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in folder.glob(f"*{suffix}")))
    raise UserError(f"{setting}={name}: does not exist; give a file, or one of {known}")


def _with_current_names(argv: Sequence[str]) -> list[str]:
    """The arguments, and the recipes they name, in current names."""
    current: list[str] = []
    for word in argv:
        name, equals, value = word.partition("=")
        if name == "--config" and equals:
            word = f"{name}={_current_recipe(value)}"
        elif name.startswith("--"):
            ((new, value),) = current_names({name[2:]: value}).items()
            word = f"--{new}{equals}{value}"
        elif current and current[-1] == "--config":
            word = _current_recipe(word)
        elif current and current[-1].startswith("--"):
            (word,) = current_names({current[-1][2:]: word}).values()
        current.append(word)
    return current


def _current_recipe(name: str) -> str:
    """The path of a recipe; its content if that uses old names."""
    if "\n" in name or ": " in name:
        return name  # YAML instead of a file
    path = find_recipe(name)
    try:
        recipe = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return str(path)  # the parser explains what is wrong
    if not isinstance(recipe, dict) or (current := current_names(recipe)) == recipe:
        return str(path)
    return yaml.safe_dump(current, sort_keys=False)


def to_yaml(config: Any) -> str:
    """Settings as YAML that `--config` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def as_typed(command: str) -> str:
    """A command's name as the user typed it: `python -m jaxs1.train`, or `jaxs1 train`."""
    program = sys.argv[0]
    if program.startswith(("jaxs1 ", "python -m jaxs1 ")):  # set by `jaxs1.__main__`
        return " ".join([program, *command.split()[3:]])
    return command


def run_command(main: Callable[[Sequence[str]], int | None]) -> None:
    """Run a command's `main(argv)`; a `UserError` becomes one line on stderr and exit status 2.

    So does an `OSError` that nobody has explained, such as that of a full disk behind stdout.
    """
    try:
        status = main(sys.argv[1:]) or 0
        sys.stdout.flush()
        sys.exit(status)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        print(f"error: {one_line(error)}; check the disk and the permissions", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it again
        sys.exit(2)


def _build(schema: type[T], values: dict[str, Any]) -> T:
    """Nested dictionaries to nested dataclasses; jsonargparse has checked keys and types."""
    hints = {f.name: f.default_factory for f in dataclasses.fields(schema)}  # type: ignore[arg-type]
    built = {}
    for name, value in values.items():
        group = hints[name]
        if dataclasses.is_dataclass(group) and isinstance(group, type):
            value = _build(group, value)
        built[name] = value
    return schema(**built)


def one_line(message: object) -> str:
    """A message without line breaks, for a `UserError`."""
    return re.sub(r"\s+", " ", str(message)).strip()


def listed(items: Iterable[object], width: int) -> str:
    """The first items of a list in at most `width` characters, for a `UserError`.

    The first is always shown, cut if necessary. Where some are left out, their number is added.
    """
    texts = [one_line(item) for item in items]
    number = f", ... ({len(texts)} in all)"
    whole = ", ".join(texts)
    if len(whole) <= width:
        return whole
    shown = texts[0] if len(texts[0]) <= width else f"{texts[0][: width - 3]}..."
    for text in texts[1:]:
        if len(shown) + len(text) + len(number) + 2 > width:
            return shown + number
        shown += f", {text}"
    return shown
