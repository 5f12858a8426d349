"""Which pieces of a conversion have reached the disk, written by all processes that take part.

    DST.partial/journal.txt      of process 0: key of source and target, then the pieces' names
    DST.partial/journal.3.txt    of process 3

A process that is killed may leave an incomplete last line.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from jaxs1.config import UserError
from jaxs1.processes import Process
from jaxs1.storage import complete_lines, locked

#: Of process 0, which prepares the folder.
MAIN = "journal.txt"
#: After so long without any progress, other processes count as lost [s].
SILENCE = 300.0
#: Between two looks at what the others have written [s].
POLL = 0.1


class Journal:
    """The journals of a conversion.

    Args:
        folder: unfinished folder that contains them
        key: changes whenever source or target does
    """

    def __init__(self, folder: Path, key: str):
        self._folder, self._key = folder, key

    @property
    def is_prepared(self) -> bool:
        """Whether process 0 has prepared the folder for this source and target."""
        return _lines(self._folder / MAIN)[:1] == [self._key]

    def mark_prepared(self) -> None:
        """Tell the other processes that they may write."""
        (self._folder / MAIN).write_text(f"{self._key}\n")

    def finished(self) -> set[str]:
        """Names of the pieces that any process has written."""
        return {name for file in self._files() for name in _lines(file)[1:]}

    @contextmanager
    def appended(self, process: Process) -> Iterator[IO[bytes]]:
        """This process's journal, open for appending lines.

        Raises:
            UserError: another process has the same number; any `OSError`.
        """
        path = self._folder / (MAIN if process.index == 0 else f"journal.{process.index}.txt")
        # process 0 has locked its own, as the mark of the folder
        opened = locked(path) if process.index else path.open("ab", buffering=0)
        with opened as file:
            size = max((line.end for line in complete_lines(path)), default=0)
            file.truncate(size)
            if not size:
                file.write(f"{self._key}\n".encode())
            yield file

    def remove_others(self) -> None:
        """Remove those of all processes but the first."""
        for file in self._files():
            if file.name != MAIN:
                file.unlink()

    def _files(self) -> list[Path]:
        return [self._folder / MAIN, *self._folder.glob("journal.*.txt")]


class Patience:
    """Waits for other processes as long as they make progress."""

    def __init__(self) -> None:
        self._seen: object = None
        self._since = time.monotonic()

    def wait(self, progress: object, message: str) -> None:
        """Wait a moment.

        Args:
            progress: changes if there is any
            message: of the error

        Raises:
            UserError: `progress` has been the same for `SILENCE` seconds.
        """
        if progress != self._seen:
            self._seen, self._since = progress, time.monotonic()
        if time.monotonic() - self._since > SILENCE:
            raise UserError(f"{message} (no progress for {SILENCE:g} s)")
        time.sleep(POLL)


def _lines(path: Path) -> list[str]:
    return [line.content.decode() for line in complete_lines(path)]
