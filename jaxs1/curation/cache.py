"""What was computed, kept on disk line by line: a re-run or an interruption repeats nothing.

A cache is a folder of JSONL files, one per shard; each line holds a key, a value and details for
the curious. All shards' files are read, one's own is written: shards that ran elsewhere are merged
by putting their files into one folder. A line that was cut off is computed again.
"""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from jaxs1.config import UserError


class Cache:
    """Values by key.

    Args:
        folder: where the files are; made if it is not there
        shard: (i, n): own part of n
        writable: whether `add` will be called; no two processes may write one file

    Raises:
        UserError: a damaged line that is not the last one; another process writes the file.
    """

    def __init__(self, folder: Path, shard: tuple[int, int] = (1, 1), *, writable: bool) -> None:
        self.values: dict[str, Any] = {}
        self._file = None
        own = folder / f"{shard[0]}-of-{shard[1]}.jsonl"
        if writable:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = own.open("ab")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{own}: another process is writing it; wait for it, or give another --shard"
                ) from None
        for path in sorted(folder.glob("*.jsonl")):
            whole = self._read(path)
            if self._file is not None and path == own:
                self._file.truncate(whole)

    def _read(self, path: Path) -> int:
        """Take in a file; returns the length of its whole lines [bytes]."""
        whole = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    entry = json.loads(line)
                    self.values[entry["key"]] = entry["value"]
                except (ValueError, LookupError, TypeError):
                    raise UserError(
                        f"{path}:{number}: is damaged; remove the line, its value is computed again"
                    ) from None
                whole += len(line)
        return whole

    def add(self, key: str, value: Any, details: dict[str, Any]) -> None:
        """Keep a value; it is on its way to the disk when this returns."""
        assert self._file is not None
        line = json.dumps({"key": key, "value": value, **details}) + "\n"
        self._file.write(line.encode())
        self._file.flush()
        self.values[key] = value

    def close(self) -> None:
        """Let another process write the file."""
        if self._file is not None:
            self._file.close()
