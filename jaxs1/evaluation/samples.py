"""The folder of an evaluation: its settings, and its samples as they come; killed, it goes on.

    settings.json   what all samples share; a folder of other settings is refused
    samples.jsonl   one graded completion a line; those of one request are written together

A request is in the file whole or not at all: what a kill tore is cut off and asked again.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxs1.config import UserError

SETTINGS, SAMPLES = "settings.json", "samples.jsonl"
#: What stays on disk only: a sweep of long thinking would fill the memory, and no result needs it.
BULKY = ("thinking", "answer", "thinking_ids", "answer_ids", "asked")


class Key(NamedTuple):
    """Which request a sample belongs to.

    point: of the sweep (`Point.key`)
    question: its number
    attempt: 0, or how many draws were rejected before
    """

    point: str
    question: int
    attempt: int


class Samples:
    """Graded completions by request.

    Args:
        folder: of the evaluation; made if it is not there
        settings: what all samples share, as JSON takes it

    `done` has them without the BULKY fields.

    Raises:
        UserError: a folder of other settings or of something else; a damaged line that is not the
            last one; another process writes here.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.settings = json.loads(json.dumps(settings))  # as it will be read back
        self.done: dict[Key, list[dict[str, Any]]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _require_same(folder, self.settings)
            path = folder / SAMPLES
            self._file = path.open("ab")
        except OSError as error:
            raise UserError(f"output={folder}: cannot be written ({error.strerror})") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(
                f"output={folder}: another evaluation is writing it; wait for it, or give another"
            ) from None
        if not (folder / SETTINGS).exists():
            partial = folder / (SETTINGS + ".partial")
            partial.write_text(json.dumps(self.settings, indent=2) + "\n")
            partial.replace(folder / SETTINGS)
        self._file.truncate(self._read(path))

    def _read(self, path: Path) -> int:
        """Take in the file; returns the length of its whole requests [bytes]."""
        whole = position = 0
        group: list[dict[str, Any]] = []
        for where, line in _lines(path):
            try:
                record = json.loads(line)
                key = Key(record["point"], record["question"], record["try"])
                index, n = record["sample"], record["of"]
            except (ValueError, LookupError, TypeError):
                raise UserError(
                    f"{where}: is damaged; remove the line, its request is asked again"
                ) from None
            position += len(line)
            group = [*group, record] if index == len(group) else [record]
            if len(group) == n:
                self.done[key] = [_slim(record) for record in group]
                group, whole = [], position
        return whole

    def add(self, key: Key, records: Sequence[dict[str, Any]]) -> None:
        """Keep all completions of a request; they are on their way to the disk on return."""
        head: dict[str, Any] = {"point": key.point, "question": key.question, "try": key.attempt}
        whole = [{**head, "sample": i, "of": len(records), **r} for i, r in enumerate(records)]
        lines = "".join(json.dumps(record) + "\n" for record in whole)
        self._file.write(lines.encode())
        self._file.flush()
        self.done[key] = [_slim(record) for record in whole]

    def close(self) -> None:
        """Let another process write the folder."""
        self._file.close()


def _slim(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in BULKY}


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Whole lines and where they are; what a kill tore at the end is none."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield f"{path}:{number}", line


def _require_same(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / SETTINGS
    if not path.exists():
        # a kill may have come before the settings were there
        known = {SAMPLES: 0, SETTINGS + ".partial": None}
        if any(known.get(p.name, -1) not in (None, p.stat().st_size) for p in folder.iterdir()):
            raise UserError(
                f"output={folder}: holds something else than an evaluation; give another folder"
            )
        return
    try:
        before = _flat(json.loads(path.read_text()))
    except (ValueError, AttributeError):
        raise UserError(f"{path}: is damaged; give another --output") from None
    now = _flat(settings)
    for name in [*now, *before]:
        old, new = before.get(name), now.get(name)
        if old != new:
            raise UserError(
                f"output={folder}: its samples have {name}={json.dumps(old)}, now it is "
                f"{json.dumps(new)}; give the same, or another --output"
            )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
