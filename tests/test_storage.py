"""Files after a kill, under a lock, on a full or read-only disk."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap

import pytest

from jaxs1.config import UserError
from jaxs1.storage import (
    MARKER,
    JsonlWriter,
    atomic_folder,
    changed_settings,
    complete_lines,
    explained,
    locked,
    read_jsonl,
    write_text,
)
from tests.conftest import ROOT


def contents(folder):
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_text() for p in files}


def run_until_ready(code, *arguments):
    """A process that runs `code` and prints "ready"."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_folder_appears_with_all_its_files(tmp_path):
    path = tmp_path / "new" / "out"
    with atomic_folder(path) as partial:
        (partial / "a").write_text("1")
        (partial / "deep").mkdir()
        (partial / "deep" / "b").write_text("2")
        assert not path.exists()
    assert contents(path) == {"a": "1", "deep/b": "2"}
    assert [p.name for p in path.parent.iterdir()] == ["out"]


def fail_after_one_file(path, **options):
    with atomic_folder(path, **options) as partial:
        (partial / "a").write_text("1")
        raise ZeroDivisionError


def test_failed_folder_leaves_nothing(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(ZeroDivisionError):
        fail_after_one_file(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("resume", [False, True])
def test_killed_folder_is_replaced_or_resumed(resume, tmp_path):
    path = tmp_path / "out"
    code = """
        import sys, time, pathlib
        from jaxs1.storage import atomic_folder
        with atomic_folder(pathlib.Path(sys.argv[1])) as partial:
            (partial / "first").write_text("1")
            (partial / "deep").mkdir()
            print("ready", flush=True)
            time.sleep(60)
    """
    process = run_until_ready(code, path)
    with (
        pytest.raises(UserError, match=r"out\.partial: another process is writing it"),
        atomic_folder(path),
    ):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not path.exists()
    with atomic_folder(path, resume=resume) as partial:
        (partial / "second").write_text("2")
    assert contents(path) == {**({"first": "1"} if resume else {}), "second": "2"}


def test_resumable_folder_keeps_what_a_failure_left(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(ZeroDivisionError):
        fail_after_one_file(path, resume=True)
    with atomic_folder(path, resume=True) as partial:
        assert (partial / "a").read_text() == "1"
    assert contents(path) == {"a": "1"}


def test_folders_of_others_are_left_alone(tmp_path):
    path = tmp_path / "out"
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "mine").write_text("precious")
    with (
        pytest.raises(
            UserError, match=r"output=.*out: .*out\.partial contains something else; move or"
        ),
        atomic_folder(path, setting="output"),
    ):
        pass
    assert contents(partial) == {"mine": "precious"}
    path.mkdir()
    with pytest.raises(UserError, match=r"out: exists already; remove it"), atomic_folder(path):
        pass
    (partial / "mine").rename(partial / MARKER)
    path.rmdir()
    with atomic_folder(path):
        pass
    assert contents(path) == {}


def test_lock_excludes_other_processes_until_they_end(tmp_path):
    path = tmp_path / "lock"
    code = """
        import sys, time, pathlib
        from jaxs1.storage import locked
        with locked(pathlib.Path(sys.argv[1])):
            print("ready", flush=True)
            time.sleep(60)
    """
    process = run_until_ready(code, path)
    with pytest.raises(UserError, match=r"lock: another process is writing it"), locked(path):
        pass
    with pytest.raises(UserError, match=r"another process is writing it"):
        JsonlWriter(path)
    process.kill()
    process.wait()
    process.stdout.close()
    with locked(path) as file:
        file.write(b"x")
    assert path.read_bytes() == b"x"


def test_every_prefix_of_a_log_reads_as_its_complete_lines(tmp_path):
    """A kill may cut the file at any byte: oracle is the list of rows itself."""
    rows = [{"n": 1}, {"text": 'ü\n"'}, {"none": None, "deep": {"a": [1, 2]}}, {"n": 10}]
    path = tmp_path / "log.jsonl"
    with JsonlWriter(path) as writer:
        writer.write(rows[0])
        writer.write(*rows[1:])
    whole = path.read_bytes()
    assert [json.loads(line) for line in whole.decode().split("\n")[:-1]] == rows
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        count = sum(end <= size for end in ends)
        assert [row for _, row in read_jsonl(path, appended=True)] == rows[:count]
        assert [line.end for line in complete_lines(path)] == ends[:count]
        with JsonlWriter(path) as writer:
            writer.write({"last": True})
        kept = [row for _, row in read_jsonl(path)]
        assert kept == [*rows[:count], {"last": True}]


def test_rows_are_in_the_file_when_write_returns(tmp_path):
    path = tmp_path / "log.jsonl"
    with JsonlWriter(path) as writer:
        for n in range(3):
            writer.write({"n": n})
            assert path.read_text().count("\n") == n + 1
        writer.truncate(len('{"n": 0}\n'))
        writer.write({"n": "again"})
    assert [row["n"] for _, row in read_jsonl(path)] == [0, "again"]


def test_text_is_readable_and_half_a_surrogate_survives(tmp_path):
    path = tmp_path / "log.jsonl"
    with JsonlWriter(path) as writer:
        writer.write({"text": "ü"}, {"text": "\ud800"})
    assert "ü" in path.read_text(encoding="utf-8")
    assert [row["text"] for _, row in read_jsonl(path)] == ["ü", "\ud800"]


def test_new_file_is_refused_where_one_exists(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("")
    with pytest.raises(UserError, match=r"log\.jsonl: cannot be written \(File exists\)"):
        JsonlWriter(path, new=True)


def test_missing_file_has_no_appended_lines(tmp_path):
    assert list(read_jsonl(tmp_path / "none", appended=True)) == []
    with pytest.raises(UserError, match=r"none: cannot be read \(No such file"):
        list(read_jsonl(tmp_path / "none"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"a": 1', "is not valid JSON"),
        (b"[1]", "must be a JSON object, is a list"),
        (b'{"a": "\xff"}', r"is not UTF-8 \(byte 7\)"),
    ],
)
def test_damaged_line_is_named(line, words, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line + b"\n")
    rows = read_jsonl(path, appended=True)
    assert next(rows) == (f"{path}:1", {"a": 1})
    with pytest.raises(UserError, match=rf"log\.jsonl:3: {words}"):
        next(rows)


def test_last_line_of_a_users_file_needs_no_line_break(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}')
    assert [row["a"] for _, row in read_jsonl(path)] == [1, 2]


def test_replaced_text(tmp_path):
    path = tmp_path / "a.json"
    for text in ("first", "second ü"):
        write_text(path, text)
        assert contents(tmp_path) == {"a.json": text}


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device); free space, then repeat the command"),
        (errno.EROFS, "Read-only file system); check its permissions, or give another path"),
        (errno.EACCES, "Permission denied); check its permissions"),
        (errno.ENOENT, "No such file or directory); check the path"),
        (errno.EIO, "Input/output error); check the path and the disk"),
    ],
)
def test_error_of_the_system_is_one_line_with_a_remedy(number, words, tmp_path):
    path = tmp_path / "out"
    with pytest.raises(UserError) as error, explained(path, setting="output"):
        raise OSError(number, os.strerror(number))
    assert str(error.value).startswith(f"output={path}: cannot be written (")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def full_disk():
    """Files of this process cannot grow beyond 1,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_is_one_line_and_leaves_what_was_there(tmp_path, full_disk):
    long, path = "x" * 2000, tmp_path / "log.jsonl"
    with JsonlWriter(path) as writer:
        writer.write({"a": 1})
    with JsonlWriter(path) as writer, pytest.raises(UserError, match=r"log\.jsonl: .*too large"):
        writer.write({"a": 2}, {"a": long})
    with JsonlWriter(path) as writer:
        writer.write({"a": 3})
    assert [row for _, row in read_jsonl(path, appended=True)] == [{"a": 1}, {"a": 3}]
    write_text(tmp_path / "text", "old")
    with pytest.raises(UserError, match=r"text: cannot be written \(File too large\)"):
        write_text(tmp_path / "text", long)
    assert (tmp_path / "text").read_text() == "old"
    with (
        pytest.raises(UserError, match=r"out: cannot be written \(File too large\)"),
        atomic_folder(tmp_path / "out") as partial,
    ):
        (partial / "a").write_text(long)
    assert not (tmp_path / "out.partial").exists()


def test_file_in_the_place_of_a_parent(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "deep" / "out"
    with (
        pytest.raises(UserError, match=r"out: cannot be written \(.*Not a directory\); give"),
        atomic_folder(path),
    ):
        pass
    with pytest.raises(UserError, match=r"Not a directory"):
        JsonlWriter(path)
    with pytest.raises(UserError, match=r"Not a directory"):
        write_text(path, "")


def test_changed_settings_are_named_with_both_values():
    saved = {"a": 1, "b": {"c": [1, 2], "d": {}}, "gone": None, "accumulate": 4}
    same = {"a": 1, "b": {"c": (1, 2), "d": {}}, "gradient_accumulation_steps": 4}
    assert changed_settings(saved, same) == {}
    other = {"a": 2, "b": {"c": [1], "d": {"x": 1}}, "new": 3, "gradient_accumulation_steps": 4}
    assert changed_settings(saved, other) == {
        "a": (1, 2),
        "b.c": ([1, 2], [1]),
        "b.d": ({}, None),
        "b.d.x": (None, 1),
        "new": (None, 3),
    }
