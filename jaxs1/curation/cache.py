"""What was computed, kept on disk line by line: a re-run or an interruption repeats nothing.

A cache is a folder of JSONL files, one per shard; each line holds a key, a value and details for
the curious. All shards' files are read, one's own is written: shards that ran elsewhere are merged
by putting their files into one folder. A line that was cut off is computed again.

In memory, what was read takes 12 bytes a key: ten million fit.
"""

from __future__ import annotations

import fcntl
import json
from array import array
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np

from jaxs1.config import UserError


class Cache:
    """Values by key, as they were when this was made; 16 hex digits to a number, a text or None.

    Args:
        folder: where the files are; made if it is not there
        shard: (i, n): own part of n
        writable: whether `add` will be called; no two processes may write one file

    Raises:
        UserError: a damaged line that is not the last one; another process writes the file; the
            folder cannot be read or written.
    """

    def __init__(self, folder: Path, shard: tuple[int, int] = (1, 1), *, writable: bool) -> None:
        self._keys, self._codes = array("Q"), array("i")  # code: position in _values
        self._values: list[Any] = []
        self._file = None
        own = folder / f"{shard[0]}-of-{shard[1]}.jsonl"
        codes: dict[Any, int] = {}
        try:
            if writable:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = own.open("ab")
                self._lock(own)
            for path in sorted(folder.glob("*.jsonl")):
                whole = self._read(path, codes)
                if self._file is not None and path == own:
                    self._file.truncate(whole)
        except OSError as error:
            raise UserError(
                f"features.cache: {folder} cannot be read or written ({error.strerror})"
            ) from None
        self._values = list(codes)
        self._sort()

    def _lock(self, own: Path) -> None:
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{own}: another process is writing it; wait for it, or give another --shard"
            ) from None

    def _read(self, path: Path, codes: dict[Any, int]) -> int:
        """Take in a file; returns the length of its whole lines [bytes]."""
        whole = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    entry = json.loads(line)
                    key, code = int(entry["key"], 16), codes.setdefault(entry["value"], len(codes))
                    self._keys.append(key)
                except (ValueError, LookupError, TypeError, OverflowError):
                    raise UserError(
                        f"{path}:{number}: is damaged; remove the line, its value is computed again"
                    ) from None
                self._codes.append(code)
                whole += len(line)
        return whole

    def _sort(self) -> None:
        """By key; of equal ones the last that was read comes last."""
        order = np.argsort(np.asarray(self._keys), kind="stable")
        self._keys = array("Q", np.asarray(self._keys)[order].tobytes())
        self._codes = array("i", np.asarray(self._codes)[order].tobytes())

    def _find(self, key: str) -> int:
        """The position of the last value that was read for a key, or -1."""
        number = int(key, 16)
        last = bisect_right(self._keys, number) - 1
        return last if last >= 0 and self._keys[last] == number else -1

    def __contains__(self, key: str) -> bool:
        return self._find(key) >= 0

    def get(self, key: str) -> Any:
        """The value of a key; None where there is none."""
        place = self._find(key)
        return None if place < 0 else self._values[self._codes[place]]

    def add(self, key: str, value: Any, details: dict[str, Any]) -> None:
        """Keep a value; it is on its way to the disk when this returns."""
        assert self._file is not None
        line = json.dumps({"key": key, "value": value, **details}) + "\n"
        self._file.write(line.encode())
        self._file.flush()

    def close(self) -> None:
        """Let another process write the file."""
        if self._file is not None:
            self._file.close()
