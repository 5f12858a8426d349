"""The folder of an evaluation: an append-only store of graded samples; safe to kill and resume.

    settings.json   what all samples share; a folder with other settings is refused
    samples.jsonl   one graded completion per line; those of one request are written together

A request that a kill cut off is removed from the file and run again. Folders of version 0.1 are
read and continued.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxs1.config import RENAMED, UserError
from jaxs1.storage import JsonlWriter, complete_lines, explained, parse_row, write_text

SETTINGS, SAMPLES = "settings.json", "samples.jsonl"
#: Fields that stay on disk only: with long thinking they would fill the memory, and no result
#: needs them.
BULKY = ("thinking", "answer", "thinking_ids", "answer_ids", "question")
#: Fields of a sample in version 0.1 -> their names now.
RENAMED_FIELDS = {
    "question": "question_id",
    "asked": "question",
    "try": "attempt",
    "given": "prediction",
    "gold": "reference",
}
#: Kinds of interventions of version 0.1 -> their names now.
RENAMED_KINDS = {"cue": "answer_prefix"}

Sample = dict[str, Any]


class Key(NamedTuple):
    """The request that a sample belongs to.

    Args:
        point: Setting in the sweep (`Point.key`)
        question_id: Number of the question in the task, from 0
        attempt: Number of draws that were rejected before, 0 for the first draw
    """

    point: str
    question_id: int
    attempt: int


class Samples:
    """Graded completions by request; `done` has them without the BULKY fields.

    Args:
        folder: Folder of the evaluation; created if missing
        settings: What all samples share, as JSON

    Raises:
        UserError: the folder has other settings or other content; a line before the last is
            damaged; another process writes the folder; it cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.settings = json.loads(json.dumps(settings))  # as it is read back
        self.done: dict[Key, list[Sample]] = {}
        with explained(folder, setting="output"):
            folder.mkdir(parents=True, exist_ok=True)
            _require_same(folder, self.settings)
        self._file = JsonlWriter(folder / SAMPLES)
        try:
            if not (folder / SETTINGS).exists():
                write_text(folder / SETTINGS, json.dumps(self.settings, indent=2) + "\n")
            self._file.truncate(self._read(folder / SAMPLES))
        except BaseException:
            self._file.close()
            raise

    def _read(self, path: Path) -> int:
        """Read the file into `done`; returns where its last complete request ends [bytes]."""
        end = 0
        group: list[Sample] = []
        for line in complete_lines(path):
            try:
                sample = current_sample(parse_row(line.content, line.where))
                key = Key(sample["point"], sample["question_id"], sample["attempt"])
                index, n = sample["sample"], sample["of"]
            except (UserError, LookupError, TypeError):
                raise UserError(
                    f"{line.where}: is damaged; remove the line, its request is run again"
                ) from None
            group = [*group, sample] if index == len(group) else [sample]
            if len(group) == n:
                self.done[key] = [_slim(sample) for sample in group]
                group, end = [], line.end
        return end

    def add(self, key: Key, samples: Sequence[Sample]) -> None:
        """Store all samples of a request; they have left the process when this returns."""
        head = key._asdict()
        numbered = [{**head, "sample": i, "of": len(samples), **s} for i, s in enumerate(samples)]
        self._file.write(*numbered)
        self.done[key] = [_slim(sample) for sample in numbered]

    def close(self) -> None:
        """Let another process write the folder."""
        self._file.close()


def current_sample(sample: Mapping[str, Any]) -> Sample:
    """A sample with the fields of version 0.1 under their current names."""
    if "try" not in sample:
        return dict(sample)
    current = {RENAMED_FIELDS.get(name, name): value for name, value in sample.items()}
    for entry in current["interventions"]:
        entry["kind"] = RENAMED_KINDS.get(entry["kind"], entry["kind"])
    return current


def current_settings(settings: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """Saved settings with the fields of version 0.1 under their current names."""
    current: dict[str, Any] = {}
    for name, value in settings.items():
        dotted = RENAMED.get(f"{group}{name}", f"{group}{name}")
        inner = current_settings(value, f"{group}{name}.") if isinstance(value, dict) else value
        current[dotted.removeprefix(group)] = inner
    return current


def _slim(sample: Sample) -> Sample:
    return {name: value for name, value in sample.items() if name not in BULKY}


def _require_same(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / SETTINGS
    if not path.exists():
        # a kill may have come before the settings were written
        known = {SAMPLES: 0, SETTINGS + ".partial": None}
        if any(known.get(p.name, -1) not in (None, p.stat().st_size) for p in folder.iterdir()):
            raise UserError(
                f"output={folder}: exists and is not an evaluation; give another folder"
            )
        return
    try:
        before = _flat(current_settings(json.loads(path.read_text())))
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
