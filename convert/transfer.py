"""Copy a model piece by piece into a new folder that appears complete or not at all.

Everything is written to DST.partial, which is renamed to DST at the end (`storage.atomic_folder`).
A journal in it lists the pieces that have reached the disk: repeating an interrupted command
resumes after them, also with another number of processes; with another source or target it starts
over. Processes share nothing but files: where a piece is written does not depend on the others.
Three threads of each read, transpose and write while a fourth waits for the disk, so memory holds
three pieces, whatever the size of the model.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from rich import filesize
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from convert.assembly import cast
from convert.interface import AUX_FILES, Weights
from convert.journal import MAIN, Journal, Patience
from convert.mapping import Piece, pieces
from jaxs1.config import UserError
from jaxs1.processes import ALONE, Process
from jaxs1.storage import atomic_folder, explained, sync

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


def transfer(
    weights: Weights,
    writer: Writer,
    dst: Path,
    config: dict[str, Any],
    process: Process = ALONE,
) -> None:
    """Write weights, config.json and the auxiliary files to a new folder.

    Of several processes, each writes its share of the pieces. Process 0 prepares the folder and
    returns when it is complete; the others return when their shares are written.

    Args:
        weights: source
        writer: layout of the result
        dst: folder to create; must not exist
        config: content of the new config.json
        process: this process; all must see the same source, and `dst` on a shared file system

    Raises:
        UserError: `dst` exists, the disk is full, a file cannot be read or written, or another
            process makes no progress.
    """
    fingerprint = weights.fingerprint()
    key = hashlib.sha256(f"{fingerprint}{writer.identity}".encode()).hexdigest()
    work = _Work(weights, writer, process, key if fingerprint else "not resumable")
    if process.index:
        _help(work, dst)
        return
    console, start = Console(stderr=True), time.perf_counter()
    with atomic_folder(dst, marker=MAIN, resume=True) as partial:
        journal = Journal(partial, work.key)
        if not fingerprint or not journal.is_prepared:
            _clear(partial)
            writer.prepare(partial)
            journal.mark_prepared()
        nbytes = work.nbytes(chain(*work.all_missing(journal).values()))
        _check_space(partial, nbytes)
        todo = work.missing(journal, 0)
        with _progress(console, dst, work.nbytes(todo)) as done:
            _write(work, journal, partial, todo, done)
        _await_others(work, journal, partial)
        journal.remove_others()
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


@dataclass(frozen=True)
class _Work:
    """What the processes do.

    Args:
        weights: source
        writer: layout of the result
        process: this process
        key: identifies source and target
    """

    weights: Weights
    writer: Writer
    process: Process
    key: str

    def nbytes(self, parts: Iterable[Piece]) -> int:
        """Bytes of pieces in the target."""
        return sum(piece.size * self.writer.dtype(piece).itemsize for piece in parts)

    def missing(self, journal: Journal, index: int) -> list[Piece]:
        """The pieces of a process that nobody has written."""
        finished = journal.finished()
        mine = share(pieces(self.weights.architecture), index, self.process.count)
        return [piece for piece in mine if piece.name not in finished]

    def all_missing(self, journal: Journal) -> dict[int, list[Piece]]:
        """The same of each process that has not written all of its own."""
        found = {i: self.missing(journal, i) for i in range(self.process.count)}
        return {i: parts for i, parts in found.items() if parts}


def share(parts: Sequence[Piece], index: int, count: int) -> list[Piece]:
    """The pieces of one of several processes: consecutive, and of equal size but for one piece."""
    ends = list(accumulate(piece.size for piece in parts))
    return [
        piece
        for piece, end in zip(parts, ends, strict=True)
        if (2 * end - piece.size) * count // (2 * ends[-1]) == index
    ]


def _help(work: _Work, dst: Path) -> None:
    """Write this process's share once process 0 has prepared the folder."""
    partial = dst.with_name(dst.name + ".partial")
    journal, patience = Journal(partial, work.key), Patience()
    index, count = work.process.index, work.process.count
    try:
        while not journal.is_prepared:
            if dst.exists():
                return
            patience.wait(
                None,
                f"{partial}: process 0 has not prepared it for process {index} of {count}; start "
                f"all {count} with the same source and target, or give --num_processes 1",
            )
        _write(work, journal, partial, work.missing(journal, index), lambda _: None)
    except UserError:
        if not dst.exists():  # else nothing was missing, and process 0 has just renamed the folder
            raise


def _write(
    work: _Work,
    journal: Journal,
    partial: Path,
    todo: list[Piece],
    done: Callable[[int], None],
) -> None:
    with explained(partial), journal.appended(work.process) as file:
        _move(work.weights, work.writer, partial, todo, file, done)


def _await_others(work: _Work, journal: Journal, partial: Path) -> None:
    """Return when all pieces are written."""
    patience = Patience()
    while missing := work.all_missing(journal):
        patience.wait(
            sum(map(len, missing.values())),
            f"{partial}: of {work.process.count} processes, {', '.join(map(str, missing))} have "
            "not written their shares; end all, then repeat the command, which resumes",
        )


def _clear(partial: Path) -> None:
    """Remove what another source or target has left."""
    for path in partial.iterdir():
        if path.name != MAIN:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _move(
    weights: Weights,
    writer: Writer,
    partial: Path,
    todo: list[Piece],
    journal: IO[bytes],
    done: Callable[[int], None],
) -> None:
    """Write the pieces; each is entered in the journal once it has reached the disk."""

    def record(path: Path, piece: Piece, nbytes: int) -> None:
        sync(path)
        journal.write(f"{piece.name}\n".encode())
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
