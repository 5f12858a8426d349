"""Copy a model piece by piece into a new folder that appears complete or not at all.

Everything is written to DST.partial, which is renamed to DST at the end (`storage.atomic_folder`).
A journal in it lists the pieces that have reached the disk: repeating an interrupted command
resumes after them; with another source or target it starts over. Three threads read, transpose and
write while a fourth waits for the disk, so memory holds three pieces, whatever the size of the
model.
"""

from __future__ import annotations

import errno
import hashlib
import json
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

from convert.assembly import cast
from convert.interface import AUX_FILES, Weights
from convert.mapping import Piece, pieces
from jaxs1.storage import atomic_folder, sync

JOURNAL = "journal.txt"
WORKERS = 3


class Writer(Protocol):
    """Writes a model in some layout on disk."""

    @property
    def identity(self) -> str:
        """Names, shapes, dtypes and offsets of all that is written: equal for equal files."""

    def prepare(self, folder: Path) -> None:
        """Write everything except the pieces; existing pieces are kept."""

    def dtype(self, piece: Piece) -> np.dtype:
        """Dtype that a piece is written in."""

    def write(self, folder: Path, piece: Piece, block: np.ndarray) -> Path:
        """Write a piece [piece.shape]; returns its file."""


def transfer(weights: Weights, writer: Writer, dst: Path, config: dict[str, Any]) -> None:
    """Write weights, config.json and the auxiliary files to a new folder.

    Args:
        weights: source
        writer: layout of the result
        dst: folder to create; must not exist
        config: content of the new config.json

    Raises:
        UserError: `dst` exists, the disk is full, a file cannot be read or written.
    """
    console, start = Console(stderr=True), time.perf_counter()
    with atomic_folder(dst, marker=JOURNAL, resume=True) as partial:
        with open(partial / JOURNAL, "r+") as journal:
            todo = _begin(journal, weights, writer, partial)
            nbytes = sum(piece.size * writer.dtype(piece).itemsize for piece in todo)
            _check_space(partial, nbytes)
            with _progress(console, dst, nbytes) as done:
                _move(weights, writer, partial, todo, journal, done)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if weights.aux_files is not None:
            copy_aux_files(weights.aux_files, partial)
    seconds = time.perf_counter() - start
    console.print(
        f"wrote {dst}: {filesize.decimal(nbytes)} in {seconds:.1f} s "
        f"({nbytes / 1e9 / seconds:.2f} GB/s)",
        soft_wrap=True,
        highlight=False,
    )


def _begin(journal: TextIO, weights: Weights, writer: Writer, partial: Path) -> list[Piece]:
    """Prepare the folder; returns the pieces that remain to be written."""
    fingerprint = weights.fingerprint()
    key = fingerprint and hashlib.sha256((fingerprint + writer.identity).encode()).hexdigest()
    journal.seek(0)
    lines = journal.read().split("\n")[:-1]  # an interrupted write leaves an incomplete last line
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
    """Write the pieces; each is entered in the journal once it has reached the disk."""

    def record(path: Path, piece: Piece, nbytes: int) -> None:
        sync(path)
        journal.write(piece.name + "\n")
        journal.flush()
        done(nbytes)

    def work(piece: Piece) -> Future[None]:
        dtype = writer.dtype(piece)
        block = cast(weights.read(piece), dtype, piece.param)
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


def copy_aux_files(source: Path, partial: Path) -> None:
    """Copy a model's tokenizer, chat template and generation config, byte for byte."""
    for pattern in AUX_FILES:
        for file in source.glob(pattern):
            if file.is_file():
                copy = partial / file.relative_to(source)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, copy)


def _check_space(partial: Path, nbytes: int) -> None:
    """Fail early if the remaining pieces do not fit on the disk."""
    free = shutil.disk_usage(partial).free
    if nbytes > free:
        raise OSError(errno.ENOSPC, f"needs {nbytes / 1e9:.1f} GB, has {free / 1e9:.1f} GB")


@contextmanager
def _progress(console: Console, dst: Path, nbytes: int) -> Iterator[Callable[[int], None]]:
    """A progress bar with GB/s; yields the function that advances it by a number of bytes."""
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
