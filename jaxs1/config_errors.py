"""jsonargparse's messages as one line: field, value, constraint, remedy."""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import Any


def explain(message: str, schema: type, command: str) -> str:
    """One line for the user; for an unknown field it suggests the most similar one.

    Args:
        message: message of a `jsonargparse.ArgumentError`, without line breaks
        schema: dataclass that was parsed
        command: the command as users type it
    """
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
        return f"{unknown:.60}: no such field; {hint}see {command} --help"
    if match := re.search(r'Parser key "([\w.]+)": (.*)', message):
        wanted = re.sub(r"<class '(\w+)'>", r"\1", match[2]).replace("tuple[str, ...]", "tuple")
        wanted = wanted.replace("tuple", "a list")
        wanted = re.sub(r"typing\.Literal\[(.*?)\]", lambda m: m[1].replace("'", ""), wanted)
        if union := re.search(r"Subtypes: \[(.*)\] Errors.*Given value: (.*)", wanted):
            kinds = union[1].replace("NoneType", "null").replace(", ", " or ")
            return f"{match[1]}={union[2]:.60}: must be {kinds}; see {command} --help"
        if got := re.search(r"Expected an? (.*?)\.? Got value: (.*)", wanted):
            return f"{match[1]}={got[2]:.60}: must be {got[1]}; see {command} --help"
        return f"{match[1]}: {wanted:.150}; see {command} --help"
    return f"{message:.200}; see {command} --help"


def _field_names(schema: Any, prefix: str = "") -> list[str]:
    names = []
    for f in dataclasses.fields(schema):
        names.append(prefix + f.name)
        if dataclasses.is_dataclass(f.default_factory):
            names += _field_names(f.default_factory, f"{prefix}{f.name}.")
    return names
