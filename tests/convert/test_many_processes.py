"""Several processes convert one model: a quarter each, the same files, killed and resumed."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from convert import journal, mapping, orbax_io, to_hf, transfer
from convert.from_hf import from_hf
from convert.weights import HfWeights, OrbaxWeights, open_weights
from jaxs1.config import UserError
from jaxs1.model.architecture import Architecture
from jaxs1.processes import Process
from tests.conftest import ROOT
from tests.convert.checkpoints import CONFIGS, make_hf, read_bits

COUNT = 4
DIRECTIONS = {
    "from_hf": (from_hf, orbax_io.Writer, HfWeights),
    "to_hf": (to_hf.to_hf, to_hf.Writer, OrbaxWeights),
}


@pytest.fixture
def sources(tmp_path):
    """The same weights in both forms."""
    src = make_hf(tmp_path / "src", layers=6)
    from_hf(src, tmp_path / "src.ours")
    return {"from_hf": src, "to_hf": tmp_path / "src.ours"}


def together(convert, src, dst, count=COUNT):
    """Convert in several processes; here they are threads, which share nothing but files."""
    with ThreadPoolExecutor(count) as pool:
        for _ in pool.map(lambda i: convert(src, dst, process=Process(i, count)), range(count)):
            pass


def files(folder):
    """Every file of a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def count_bytes(monkeypatch, kind):
    """Bytes that each process has read, by its weights."""
    found, lock, read = {}, threading.Lock(), kind.read

    def counted(self, piece):
        block = read(self, piece)
        with lock:
            found[id(self)] = found.get(id(self), 0) + block.nbytes
        return block

    monkeypatch.setattr(kind, "read", counted)
    return found


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_four_read_a_quarter_each_and_write_what_one_does(
    direction, sources, tmp_path, monkeypatch
):
    convert, _, kind = DIRECTIONS[direction]
    convert(sources[direction], tmp_path / "one")
    read = count_bytes(monkeypatch, kind)
    together(convert, sources[direction], tmp_path / "four")
    assert files(tmp_path / "four") == files(tmp_path / "one")
    architecture = open_weights(sources["from_hf"]).architecture
    total = 2 * architecture.num_parameters
    piece = 2 * max(x.size for x in mapping.pieces(architecture))
    assert len(read) == COUNT and sum(read.values()) == total
    assert max(read.values()) <= total / COUNT + piece


@pytest.mark.parametrize("count", [1, 2, 5, 16, 1000])
def test_shares_are_all_pieces_once(count):
    parts = mapping.pieces(Architecture.from_hf(CONFIGS["qwen2.5-32b"], "test"))
    shares = [transfer.share(parts, i, count) for i in range(count)]
    assert [piece for each in shares for piece in each] == parts
    sizes = [sum(piece.size for piece in each) for each in shares]
    assert max(sizes) <= sum(sizes) / count + max(piece.size for piece in parts)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_lost_process_is_named_and_any_number_resumes(
    direction, count, sources, tmp_path, monkeypatch
):
    convert, writer, _ = DIRECTIONS[direction]
    dst, lost, written, write = tmp_path / "dst", 2, [], writer.write
    missing = transfer.share(
        mapping.pieces(open_weights(sources["to_hf"]).architecture), lost, COUNT
    )
    with monkeypatch.context() as patch:
        patch.setattr(journal, "SILENCE", 0)
        for late, index in (("1, 2, 3", 0), (None, 1), (None, 3), ("2", 0)):
            process = Process(index, COUNT)
            if late is None:
                convert(sources[direction], dst, process=process)
                continue
            with pytest.raises(UserError, match=f"of 4 processes, {late} have not written"):
                convert(sources[direction], dst, process=process)
    assert not dst.exists()

    def record(self, folder, piece, block):
        written.append(piece.name)
        return write(self, folder, piece, block)

    monkeypatch.setattr(writer, "write", record)
    together(convert, sources[direction], dst, count)
    assert sorted(written) == sorted(piece.name for piece in missing)
    convert(sources[direction], tmp_path / "one")
    assert files(dst) == files(tmp_path / "one")


def test_a_process_that_comes_late_finds_nothing_to_do(sources, tmp_path):
    from_hf(sources["from_hf"], tmp_path / "dst")
    before = files(tmp_path / "dst")
    from_hf(sources["from_hf"], tmp_path / "dst", Process(1, 2))
    assert files(tmp_path / "dst") == before
    with pytest.raises(UserError, match="exists already"):
        from_hf(sources["from_hf"], tmp_path / "dst", Process(0, 2))


@pytest.mark.parametrize("other", ["nothing", "another source"])
def test_without_process_0_the_others_write_nothing(other, sources, tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "SILENCE", 0)
    dst = tmp_path / "dst"
    if other == "another source":
        with pytest.raises(UserError):
            from_hf(make_hf(tmp_path / "other", seed=1), dst, Process(0, 2))
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"process 0 has not prepared it for process 1 of 2; start"):
        from_hf(sources["from_hf"], dst, Process(1, 2))
    assert files(tmp_path) == before


def test_two_processes_of_the_same_number_do_not_mix(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "SILENCE", 0)
    with pytest.raises(UserError, match="of 2 processes, 1 have not"):
        from_hf(sources["from_hf"], tmp_path / "dst", Process(0, 2))
    with (
        journal.locked(tmp_path / "dst.partial" / "journal.1.txt"),
        pytest.raises(UserError, match=r"journal\.1\.txt: another process is writing it"),
    ):
        from_hf(sources["from_hf"], tmp_path / "dst", Process(1, 2))


@pytest.mark.slow
def test_four_commands_killed_and_two_resume(tmp_path):
    src, dst = make_hf(tmp_path / "src", layers=12), tmp_path / "dst"

    def start(count):
        return [
            subprocess.Popen(
                [sys.executable, "-m", "convert.from_hf", str(src), str(dst)],
                cwd=ROOT,
                env=os.environ | {"SLURM_STEP_NUM_TASKS": str(count), "SLURM_PROCID": str(i)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(count)
        ]

    group = start(4)
    while not (any(dst.parent.glob("dst.partial/journal.*.txt")) or dst.exists()):
        time.sleep(0.001)
    for process in group:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    if dst.exists():
        pytest.skip("the conversion was quicker than the signal")
    said = [process.communicate()[1] for process in start(2)]
    assert re.match(r"wrote .*dst: ", said[0]) and not said[1]
    to_hf.to_hf(dst, tmp_path / "hf")
    assert read_bits(tmp_path / "hf") == read_bits(src)
