"""Move a model piece by piece into a new folder, so that it is whole or not there at all.

Everything is written under DST.partial, which is renamed to DST at the end. A journal in it lists
the pieces that have reached the disk: the same command, started again after an interruption, goes
on after them; with another source or target it starts afresh. Three threads read, turn and write, a
fourth one waits for the disk, so memory holds three pieces whatever the size of the model.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from rich import filesize
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from convert.interface import SIDE_FILES, Weights
from convert.mapping import Piece, pieces
from convert.weights import cast
from jaxs1.config import UserError

JOURNAL = "journal.txt"
WORKERS = 3


class Writer(Protocol):
    """A layout on disk. `identity` differs where the files would differ."""

    @property
    def identity(self) -> str:
        """Names, shapes, dtypes and places of all that will be written."""

    def prepare(self, folder: Path) -> None:
        """Write all but the pieces; leaves pieces that are there as they are."""

    def dtype(self, piece: Piece) -> np.dtype:
        """What a piece is written as."""

    def write(self, folder: Path, piece: Piece, block: np.ndarray) -> Path:
        """Write one piece in our layout; returns the file that it is in."""


def transfer(weights: Weights, writer: Writer, dst: Path, config: dict[str, Any]) -> None:
    """Write `weights`, `config` as config.json and the side files to the new folder `dst`.

    Raises:
        UserError: `dst` exists, the disk is full, a file cannot be read or written.
    """
    if dst.exists() or dst.is_symlink():
        raise UserError(f"{dst}: exists already; remove it or give another folder")
    partial = dst.with_name(dst.name + ".partial")
    console = Console(stderr=True)
    with _explained(dst):
        _claim(partial)
        start = time.perf_counter()
        with open(partial / JOURNAL, "a+") as journal:
            _lock(journal, partial)
            todo = _begin(journal, weights, writer, partial)
            nbytes = sum(piece.size * writer.dtype(piece).itemsize for piece in todo)
            _check_space(partial, nbytes)
            with _progress(console, dst, nbytes) as done:
                _move(weights, writer, partial, todo, journal, done)
            _finish(weights, config, partial, dst)
        seconds = time.perf_counter() - start
        console.print(
            f"wrote {dst}: {filesize.decimal(nbytes)} in {seconds:.1f} s "
            f"({nbytes / 1e9 / seconds:.2f} GB/s)",
            soft_wrap=True,
            highlight=False,
        )


def _claim(partial: Path) -> None:
    """Make the folder, or take over what an interrupted conversion left; nothing else."""
    partial.mkdir(parents=True, exist_ok=True)
    if any(partial.iterdir()) and not (partial / JOURNAL).exists():
        raise UserError(f"{partial}: holds something else than a conversion; move it away")


def _begin(journal: TextIO, weights: Weights, writer: Writer, partial: Path) -> list[Piece]:
    """Prepare the folder; returns the pieces that are still to be written."""
    stamp = weights.fingerprint()
    key = stamp and hashlib.sha256((stamp + writer.identity).encode()).hexdigest()
    journal.seek(0)
    lines = journal.read().split("\n")[:-1]  # what follows the last line break was cut off
    if key is None or lines[:1] != [key]:
        for path in partial.iterdir():
            if path.name != JOURNAL:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        lines = [key or "not resumable"]
    writer.prepare(partial)
    journal.truncate(0)
    journal.write("".join(line + "\n" for line in lines))
    journal.flush()
    finished = set(lines[1:])
    return [piece for piece in pieces(weights.architecture) if piece.name not in finished]


def _move(
    weights: Weights,
    writer: Writer,
    partial: Path,
    todo: list[Piece],
    journal: TextIO,
    done: Callable[[int], None],
) -> None:
    """Write the pieces; each is entered in the journal when the disk has it."""

    def record(path: Path, piece: Piece, nbytes: int) -> None:
        _sync(path)
        journal.write(piece.name + "\n")
        journal.flush()
        done(nbytes)

    def work(piece: Piece) -> Future[None]:
        dtype = writer.dtype(piece)
        block = cast(weights.read(piece), dtype, piece.ours)
        path = writer.write(partial, piece, block)
        return disk.submit(record, path, piece, block.nbytes)

    with ThreadPoolExecutor(1) as disk, ThreadPoolExecutor(WORKERS) as workers:
        written = [workers.submit(work, piece) for piece in todo]
        try:
            wait(written, return_when=FIRST_EXCEPTION)
        finally:
            workers.shutdown(cancel_futures=True)
        for failed in (f for f in written if not f.cancelled() and f.exception()):
            failed.result()
        for recorded in written:
            recorded.result().result()


def _finish(weights: Weights, config: dict[str, Any], partial: Path, dst: Path) -> None:
    """Add the small files, make everything durable, and give the folder its name."""
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if weights.aux_files is not None:
        copy_side_files(weights.aux_files, partial)
    for path in [partial, *partial.rglob("*")]:
        _sync(path)
    (partial / JOURNAL).unlink()
    os.rename(partial, dst)
    _sync(dst.parent)


def copy_side_files(source: Path, partial: Path) -> None:
    """Copy a model's tokenizer, chat template and generation config, byte by byte."""
    for pattern in SIDE_FILES:
        for file in source.glob(pattern):
            if file.is_file():
                copy = partial / file.relative_to(source)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, copy)


def _sync(path: Path) -> None:
    """Wait until a file's or folder's content is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _lock(journal: TextIO, partial: Path) -> None:
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{partial}: another conversion is writing it; wait for it, or give another folder"
        ) from None


def _check_space(partial: Path, nbytes: int) -> None:
    """Refuse at once what cannot fit; what a resumed conversion has written counts as written."""
    free = shutil.disk_usage(partial).free
    if nbytes > free:
        raise OSError(errno.ENOSPC, f"needs {nbytes / 1e9:.1f} GB, has {free / 1e9:.1f} GB")


@contextmanager
def _explained(dst: Path) -> Iterator[None]:
    """Turn the system's errors into one line for the user."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{dst}: the disk is full ({error.strerror}); free space and run the same command "
                f"again (it goes on), or remove {dst.name}.partial"
            ) from None
        where = error.filename or dst
        raise UserError(
            f"{where}: {error.strerror or error}; nothing was written to {dst}"
        ) from None


@contextmanager
def _progress(console: Console, dst: Path, nbytes: int) -> Iterator[Callable[[int], None]]:
    """A progress bar with GB/s; yields the function that moves it on by some bytes."""
    columns = (TextColumn("{task.description}"), BarColumn(), _Speed(), TimeRemainingColumn())
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task(dst.name, total=nbytes)
        yield lambda n: progress.advance(task, n)


class _Speed(ProgressColumn):
    """Written and total size, and speed."""

    def render(self, task: Task) -> Text:
        done, total, speed = task.completed, task.total or 0, task.speed or 0
        return Text(f"{done / 1e9:.2f}/{total / 1e9:.2f} GB {speed / 1e9:.2f} GB/s")
