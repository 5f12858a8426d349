"""The answers of a teacher on disk: each is written when it comes, and never requested again.

settings.json   what all answers share; a folder with other settings is refused
answers.jsonl   one answer per line, in the order in which they came
"""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxs1.config import UserError
from jaxs1.storage import (
    JsonlWriter,
    changed_settings,
    complete_lines,
    explained,
    parse_row,
    write_text,
)

SETTINGS, ANSWERS = "settings.json", "answers.jsonl"


class Key(NamedTuple):
    """What an answer belongs to.

    Args:
        question: Key of the question
        sample: Number of the sample, from 0
    """

    question: str
    sample: int


@dataclass(frozen=True)
class Answer:
    """What a teacher wrote.

    Args:
        thinking: Its thinking, without delimiters; empty if there is none
        answer: Its answer
        finish_reason: Why it ended: stop, length, ...
        prompt_tokens: Tokens of the prompt; None if the teacher does not say
        completion_tokens: Tokens of thinking and answer; None if the teacher does not say
        thinking_ended_by: What ended the thinking, from our own engine or server
    """

    thinking: str
    answer: str
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    thinking_ended_by: str | None = None


class Stored(NamedTuple):
    """An answer on disk.

    Args:
        start: Offset of its line in the file [bytes]
        prompt_tokens: See `Answer`; 0 if unknown
        completion_tokens: See `Answer`; 0 if unknown
    """

    start: int
    prompt_tokens: int
    completion_tokens: int


class Answers:
    """Stored answers by key; in memory are only their places and sizes.

    Args:
        folder: Folder of the answers; created if missing
        settings: What all answers share, as JSON

    Raises:
        UserError: the folder has other settings or other content; a line before the last is
            damaged; another process writes the folder; it cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._path = folder / ANSWERS
        self._lock = threading.Lock()
        self.stored: dict[Key, Stored] = {}
        with explained(folder, setting="output"):
            folder.mkdir(parents=True, exist_ok=True)
            _require_same(folder, settings)
        self._writer = JsonlWriter(self._path)
        try:
            write_text(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")
            self._read()
        except BaseException:
            self._writer.close()
            raise

    def _read(self) -> None:
        for line in complete_lines(self._path):
            try:
                row = parse_row(line.content, line.where)
                key = Key(row.pop("question"), row.pop("sample"))
                self._remember(key, Answer(**row), line.end - len(line.content) - 1)
            except (UserError, LookupError, TypeError):
                raise UserError(
                    f"{line.where}: is damaged; remove the line, its answer is requested again"
                ) from None

    def _remember(self, key: Key, answer: Answer, start: int) -> None:
        used = answer.prompt_tokens or 0, answer.completion_tokens or 0
        self.stored[key] = Stored(start, *used)

    def add(self, key: Key, answer: Answer) -> None:
        """Store an answer; it has left the process when this returns. From any thread."""
        with self._lock:
            self._remember(key, answer, self._writer.write(key._asdict() | asdict(answer)))

    def get(self, key: Key) -> Answer:
        """Read an answer; raises `KeyError` if it is not stored."""
        with explained(self._path, verb="read"), self._path.open("rb") as file:
            file.seek(self.stored[key].start)
            row = json.loads(file.readline())
        return Answer(**{k: v for k, v in row.items() if k not in Key._fields})

    def close(self) -> None:
        """Let another process write the folder."""
        self._writer.close()


def _require_same(folder: Path, settings: dict[str, Any]) -> None:
    path, answers = folder / SETTINGS, folder / ANSWERS
    if not path.exists():
        # a kill may have come before the settings were written
        if any(p.name not in (ANSWERS, f"{SETTINGS}.partial") for p in folder.iterdir()):
            raise UserError(
                f"output={folder}: exists and has no answers of a teacher; give another folder"
            )
        return
    if not answers.exists() or answers.stat().st_size == 0:
        return  # no answer depends on them
    try:
        changed = changed_settings(json.loads(path.read_text()), settings)
    except (ValueError, AttributeError):
        raise UserError(f"{path}: is damaged; give another --output") from None
    for name, (old, new) in changed.items():
        raise UserError(
            f"output={folder}: its answers have {name}={json.dumps(old)}, now it is "
            f"{json.dumps(new)}; give the same, or another --output"
        )
