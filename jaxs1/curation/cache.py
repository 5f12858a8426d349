"""Computed values on disk, one per line: after an interruption or a re-run nothing is repeated.

A cache is a folder of JSONL files, one per shard; each line holds a key, a value and details for
inspection. The files of all shards are read, only the shard's own is written: to merge shards that
ran on several machines, copy their files into one folder. A line that a kill cut off is computed
again.

In memory a value takes 12 bytes per key: ten million fit.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np

from jaxs1.config import UserError
from jaxs1.storage import JsonlWriter, complete_lines, explained, parse_row


class Cache:
    """The values that the files held when it was opened, by key: 16 hex digits to a JSON scalar.

    Args:
        folder: Folder of the files; created if missing when writable
        shard: Own part (i, n) of n
        writable: Whether `add` will be called; no two processes may write one file

    Raises:
        UserError: a damaged line; another process writes the file; the folder cannot be read or
            written.
    """

    def __init__(self, folder: Path, shard: tuple[int, int] = (1, 1), *, writable: bool) -> None:
        self._keys, self._codes = array("Q"), array("i")  # code: position in _values
        self._writer: JsonlWriter | None = None
        codes: dict[Any, int] = {}
        with explained(folder, setting="features.cache", verb="read or written"):
            if writable:
                folder.mkdir(parents=True, exist_ok=True)
                self._writer = JsonlWriter(folder / f"{shard[0]}-of-{shard[1]}.jsonl")
            try:
                for path in sorted(folder.glob("*.jsonl")):
                    self._read(path, codes)
            except BaseException:
                self.close()
                raise
        self._values = list(codes)
        self._sort()

    def _read(self, path: Path, codes: dict[Any, int]) -> None:
        for line in complete_lines(path):
            try:
                entry = parse_row(line.content, line.where)
                key, code = int(entry["key"], 16), codes.setdefault(entry["value"], len(codes))
                self._keys.append(key)
            except (ValueError, LookupError, TypeError, OverflowError):
                raise UserError(
                    f"{line.where}: is damaged; remove the line, its value is computed again"
                ) from None
            self._codes.append(code)

    def _sort(self) -> None:
        """Sort by key; among equal keys the one that was read last comes last."""
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
        """The value of a key; None without one."""
        place = self._find(key)
        return None if place < 0 else self._values[self._codes[place]]

    def add(self, key: str, value: Any, details: dict[str, Any]) -> None:
        """Store a value; it has left the process when this returns."""
        assert self._writer is not None
        self._writer.write({"key": key, "value": value, **details})

    def close(self) -> None:
        """Let another process write the file."""
        if self._writer is not None:
            self._writer.close()
