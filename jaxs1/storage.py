"""Files that survive a kill: folders that appear complete, locks, JSONL that is appended to.

Every `OSError` becomes a `UserError`: one line with the path, the reason and the remedy.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from jaxs1.config import UserError, current_names

Row = dict[str, Any]

#: File in an unfinished folder: marks it as one that may be replaced, and is locked while in use.
MARKER = ".unfinished"

#: What file systems without locks answer, e.g. some network file systems.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)

_REMEDIES = {
    (errno.ENOSPC, errno.EDQUOT): "free space, then repeat the command",
    (errno.EROFS, errno.EACCES, errno.EPERM): "check its permissions, or give another path",
    (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY): "give another path",
    (errno.ENOENT,): "check the path",
}


@contextmanager
def explained(path: Path, *, setting: str = "", verb: str = "written") -> Iterator[None]:
    """Turn the operating system's errors into one line for the user.

    Args:
        path: file or folder that is used inside; an error that names another file names both
        setting: field that holds the path, e.g. "output"
        verb: what is done with the path, as a participle

    Raises:
        UserError: in place of any `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise UserError(explain(error, path, setting=setting, verb=verb)) from None


def explain(error: OSError, path: Path, *, setting: str = "", verb: str = "written") -> str:
    """The line of `explained`."""
    name = f"{setting}={path}" if setting else str(path)
    file = "" if error.filename in (None, str(path)) else f"{error.filename}: "
    reason = error.strerror or str(error) or type(error).__name__
    remedies = (text for numbers, text in _REMEDIES.items() if error.errno in numbers)
    remedy = next(remedies, "check the path and the disk")
    return f"{name}: cannot be {verb} ({file}{reason}); {remedy}"


def check_output(
    path: str | Path, *, setting: str = "output", folder: bool = False, new: bool = False
) -> None:
    """Check that an output can be written, before the work that it is for; leaves nothing behind.

    Args:
        path: file or folder to write
        setting: field that holds the path, for messages
        folder: it is a folder, which is created with its parents; a file needs its folder
        new: it must not exist

    Raises:
        UserError: in place of any `OSError`; it exists and must not.
    """
    path = Path(path)
    with explained(path, setting=setting):
        if new:
            _require_absent(path, setting)
        if folder:
            _probe(next(p for p in (path, *path.absolute().parents) if p.exists()))
        elif path.is_dir():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        elif path.exists():
            path.open("ab").close()
        else:
            _probe(path.parent)


def _probe(folder: Path) -> None:
    """Write a byte to a file in a folder and remove it; an `OSError` names the folder."""
    try:
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=".jaxs1-")
        try:
            os.write(descriptor, b"\n")
        finally:
            os.close(descriptor)
            os.unlink(name)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None


@contextmanager
def atomic_folder(
    path: Path, *, setting: str = "", marker: str = MARKER, resume: bool = False
) -> Iterator[Path]:
    """A new folder that appears complete or not at all, even if the process is killed.

    Yields PATH.partial, which is renamed to PATH once the block has ended and everything in it has
    reached the disk. An interrupted attempt's PATH.partial is replaced by the next one.

    Args:
        path: folder to create, with its parents
        setting: field that holds the path, for messages
        marker: file in PATH.partial that tells it from a user's folder; it is locked, and removed
            at the end
        resume: keep the contents of an interrupted attempt, and of this one if it fails

    Raises:
        UserError: the folder exists; PATH.partial is something else or another process writes it;
            any `OSError`.
    """
    partial = path.with_name(path.name + ".partial")
    with explained(path, setting=setting):
        _require_new(path, partial, setting, marker)
        partial.mkdir(parents=True, exist_ok=True)
        with locked(partial / marker, name=str(partial)):
            if not resume:
                _clear(partial, keep=marker)
            try:
                yield partial
            except BaseException:
                if not resume:
                    shutil.rmtree(partial, ignore_errors=True)
                raise
            for written in partial.rglob("*"):
                sync(written)
            (partial / marker).unlink(missing_ok=True)
            sync(partial)
            partial.rename(path)
            sync(path.parent)


def _require_new(path: Path, partial: Path, setting: str, marker: str) -> None:
    _require_absent(path, setting)
    name = f"{setting}={path}" if setting else str(path)
    if partial.is_dir() and any(partial.iterdir()) and not (partial / marker).exists():
        raise UserError(f"{name}: {partial} contains something else; move or delete it")


def _require_absent(path: Path, setting: str) -> None:
    if path.exists() or path.is_symlink():
        name = f"{setting}={path}" if setting else str(path)
        raise UserError(f"{name}: exists already; remove it or give another path")


def _clear(folder: Path, *, keep: str) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != keep:
            path.unlink()


def sync(path: Path) -> None:
    """Wait until the content of a file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: readers see the old text or the new one.

    Raises:
        UserError: in place of any `OSError`.
    """
    partial = path.with_name(path.name + ".partial")
    with explained(path):
        if path.exists() and not path.is_file():  # such as /dev/stdout
            path.write_text(text, encoding="utf-8")
            return
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def locked(path: Path, *, name: str = "") -> Iterator[IO[bytes]]:
    """Hold an exclusive lock on a file, which is created if missing; yields it open for appending.

    The operating system releases the lock when the process ends, however it ends. A file system
    without locks is used without.

    Args:
        path: file to lock
        name: how messages call what the lock protects; the path where it is empty

    Raises:
        UserError: another process holds the lock; any `OSError` of opening or locking.
    """
    with explained(path):
        file = path.open("ab", buffering=0)
    try:
        _lock(file, path, name)
        yield file
    finally:
        file.close()


def _lock(file: IO[bytes], path: Path, name: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{name or path}: another process is writing it; wait for it, or give another path"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise UserError(explain(error, path, verb="locked")) from None


class Line(NamedTuple):
    """A complete line of a file.

    Args:
        where: file and line number, for messages
        content: bytes without the line break
        end: offset in the file behind the line [bytes]
    """

    where: str
    content: bytes
    end: int


def complete_lines(path: Path) -> Iterator[Line]:
    """The lines of a file that end in a line break: a last one without was torn by a kill.

    A missing file has none.

    Raises:
        UserError: in place of any `OSError`.
    """
    end = 0
    with explained(path, verb="read"):
        if not path.exists():
            return
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n"):
                    end += len(line)
                    yield Line(f"{path}:{number}", line[:-1], end)


def read_jsonl(
    path: Path, *, appended: bool = False, setting: str = ""
) -> Iterator[tuple[str, Row]]:
    """The objects of a JSONL file, each with its file and line number. Empty lines are skipped.

    Args:
        path: file to read
        appended: written by `JsonlWriter`: a missing file is empty, and a last line without a line
            break, which a kill tore, is left out
        setting: field that holds the path, for messages

    Raises:
        UserError: a line that is not a JSON object in UTF-8; any `OSError`.
    """
    for where, line in _appended(path) if appended else _all_lines(path, setting):
        if line.strip():
            yield where, parse_row(line, where)


def _appended(path: Path) -> Iterator[tuple[str, bytes]]:
    return ((line.where, line.content) for line in complete_lines(path))


def _all_lines(path: Path, setting: str) -> Iterator[tuple[str, bytes]]:
    with explained(path, setting=setting, verb="read"), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield f"{path}:{number}", line


def parse_row(line: bytes, where: str) -> Row:
    """One line of JSONL as an object.

    Raises:
        UserError: it is not a JSON object in UTF-8; the message begins with `where`.
    """
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: is not UTF-8 (byte {error.start}); re-encode the file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not valid JSON ({error}); fix or remove the line") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: must be a JSON object, is a {type(row).__name__}")
    return row


class JsonlWriter:
    """Appends JSON objects to a file, one a line; each has left the process when `write` returns.

    What JSON lacks, such as a date, is written as text. A line that a kill tore is cut off when the
    file is opened. While it is open, the file is locked. Use as a context manager, or call `close`.

    Args:
        path: file to append to, created if missing
        new: refuse a file that exists

    Raises:
        UserError: another process writes the file; it exists and must not; any `OSError`.
    """

    def __init__(self, path: Path, *, new: bool = False):
        self.path = path
        with explained(path):
            self._file = path.open("xb" if new else "ab", buffering=0)
        try:
            _lock(self._file, path, "")
            self.truncate(max((line.end for line in complete_lines(path)), default=0))
        except BaseException:
            self._file.close()
            raise

    def write(self, *rows: Row) -> int:
        """Append rows; a kill meanwhile may leave only the first ones, an error leaves none.

        Returns:
            the offset in the file at which the first of them begins [bytes]

        Raises:
            UserError: the disk is full, or any other `OSError`.
        """
        rest = memoryview(b"".join(map(_encode, rows)))
        with explained(self.path):
            size = self._file.seek(0, os.SEEK_END)
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                self._file.truncate(size)  # a full disk takes the first part of a line
                raise
        return size

    def truncate(self, size: int) -> None:
        """Cut the file off behind `size` bytes, e.g. at the end of a `Line`."""
        with explained(self.path):
            self._file.truncate(size)

    def close(self) -> None:
        """Close the file, so that other processes may write it."""
        self._file.close()

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _encode(row: Row) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair has no UTF-8
        return json.dumps(row, default=str).encode() + b"\n"


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
