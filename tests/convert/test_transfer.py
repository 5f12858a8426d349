"""Interrupted, full, refused: nothing half-written under the final name, and a re-run goes on."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from convert import journal, orbax_io, safetensors_io, to_hf
from convert.from_hf import from_hf
from jaxs1.config import UserError
from tests.convert.checkpoints import make_hf, read_bits

DIRECTIONS = {"from_hf": (from_hf, orbax_io.Writer), "to_hf": (to_hf.to_hf, to_hf.Writer)}


@pytest.fixture
def sources(tmp_path):
    """The same weights in both forms."""
    src = make_hf(tmp_path / "src")
    from_hf(src, tmp_path / "src.ours")
    return {"from_hf": src, "to_hf": tmp_path / "src.ours"}


class Interrupted(BaseException):
    """Like Ctrl-C: no handler of errors catches it."""


def count_writes(monkeypatch, writer, *, stop_after=None):
    """The names of the pieces that are written from now on; stops the conversion if asked to."""
    written, write, lock = [], writer.write, threading.Lock()

    def counted(self, folder, piece, block):
        with lock:
            if stop_after is not None and len(written) >= stop_after:
                raise Interrupted
            written.append(piece.name)
        return write(self, folder, piece, block)

    monkeypatch.setattr(writer, "write", counted)
    return written


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_re_run_goes_on(direction, sources, tmp_path, monkeypatch):
    convert, writer = DIRECTIONS[direction]
    dst = tmp_path / "dst"
    with monkeypatch.context() as patch:
        first = count_writes(patch, writer, stop_after=9)
        with pytest.raises(Interrupted):
            convert(sources[direction], dst)
    assert len(first) == 9
    assert not dst.exists()
    second = count_writes(monkeypatch, writer)
    convert(sources[direction], dst)
    assert second
    assert not set(first) & set(second)
    assert not (tmp_path / "dst.partial").exists()
    assert not (dst / journal.MAIN).exists()
    whole = dst if direction == "to_hf" else tmp_path / "whole"
    if direction == "from_hf":
        to_hf.to_hf(dst, whole)
    assert read_bits(whole) == read_bits(sources["from_hf"])


@pytest.mark.parametrize("what", ["source", "target"])
def test_another_source_or_target_starts_afresh(what, sources, tmp_path, monkeypatch):
    dst = tmp_path / "dst"
    with monkeypatch.context() as patch:
        count_writes(patch, to_hf.Writer, stop_after=9)
        with pytest.raises(Interrupted):
            to_hf.to_hf(sources["to_hf"], dst)
    src = sources["to_hf"]
    if what == "source":
        from_hf(make_hf(tmp_path / "other", seed=1), tmp_path / "other.ours")
        src = tmp_path / "other.ours"
    to_hf.to_hf(src, dst, "bfloat16", shard_bytes=5_000 if what == "target" else 10**9)
    expected = tmp_path / ("other" if what == "source" else "src")
    assert read_bits(dst) == read_bits(expected)
    assert (dst / safetensors_io.INDEX).exists() == (what == "target")
    assert (dst / safetensors_io.SINGLE).exists() == (what == "source")


def test_killed_at_any_time_it_goes_on(tmp_path):
    src = make_hf(tmp_path / "src", layers=12)
    command = [sys.executable, "-m", "convert.from_hf", src, tmp_path / "dst"]
    written = tmp_path / "dst.partial" / journal.MAIN
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (written.exists() and written.stat().st_size > 500):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if (tmp_path / "dst").exists():
        pytest.skip("the conversion was quicker than the signal")
    subprocess.run(command, check=True)
    to_hf.to_hf(tmp_path / "dst", tmp_path / "hf")
    assert read_bits(tmp_path / "hf") == read_bits(src)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("call", ["pwrite", "open"])
def test_a_full_disk_is_one_line(direction, call, sources, tmp_path, monkeypatch):
    convert, _ = DIRECTIONS[direction]
    real, calls = getattr(os, call), []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) > 5 and (call == "pwrite" or args[1] & os.O_CREAT):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(
            UserError, match=r"cannot be written \(.*\); free space, then repeat"
        ) as caught:
            convert(sources[direction], tmp_path / "dst")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "dst").exists()
    convert(sources[direction], tmp_path / "dst")
    assert (tmp_path / "dst").exists()


def test_too_little_space_is_refused_at_once(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    written = count_writes(monkeypatch, orbax_io.Writer)
    with pytest.raises(UserError, match=r"cannot be written \(.*\); free space, then repeat"):
        from_hf(sources["from_hf"], tmp_path / "dst")
    assert not written


def test_an_existing_folder_is_refused(sources, tmp_path):
    (tmp_path / "dst").mkdir()
    with pytest.raises(UserError, match="dst: exists already"):
        from_hf(sources["from_hf"], tmp_path / "dst")


def test_a_folder_of_the_user_is_not_taken_for_a_conversion(sources, tmp_path):
    (tmp_path / "dst.partial").mkdir()
    (tmp_path / "dst.partial/thesis.txt").write_text("do not delete")
    with pytest.raises(UserError, match=r"dst\.partial contains something else; move or delete it"):
        from_hf(sources["from_hf"], tmp_path / "dst")
    assert (tmp_path / "dst.partial/thesis.txt").exists()


def test_two_conversions_to_one_folder_do_not_mix(sources, tmp_path, monkeypatch):
    waiting, go_on, write = threading.Event(), threading.Event(), orbax_io.Writer.write

    def slow(self, folder, piece, block):
        waiting.set()
        go_on.wait(30)
        return write(self, folder, piece, block)

    monkeypatch.setattr(orbax_io.Writer, "write", slow)
    first = threading.Thread(target=from_hf, args=(sources["from_hf"], tmp_path / "dst"))
    first.start()
    waiting.wait(30)
    try:
        with pytest.raises(UserError, match=r"dst\.partial: another process is writing it"):
            from_hf(sources["from_hf"], tmp_path / "dst")
    finally:
        go_on.set()
        first.join()
    assert (tmp_path / "dst").exists()
