"""The cache against a dictionary; torn, damaged and locked files."""

import random

import pytest

from jaxs1.config import UserError
from jaxs1.curation.cache import Cache


def fill(folder, values, shard=(1, 1)):
    cache = Cache(folder, shard, writable=True)
    for key, value in values.items():
        cache.add(key, value, {"answer": "a"})
    cache.close()


def test_cache_gives_back_what_was_written_last(tmp_path):
    """Against a dictionary; keys of several files, some of them twice."""
    rng, oracle = random.Random(0), {}
    keys = [f"{rng.getrandbits(64):016x}" for _ in range(300)] + ["0" * 16, "f" * 16]
    for shard in (1, 2, 3):
        cache = Cache(tmp_path, (shard, 3), writable=True)
        for key in rng.sample(keys, 150):
            oracle[key] = rng.choice([True, False, None, "11", "03"])
            cache.add(key, oracle[key], {"answer": "a"})
        cache.close()
        cache = Cache(tmp_path, writable=False)
        assert {key: cache.get(key) for key in keys if key in cache} == oracle
        assert all(cache.get(key) is None for key in keys if key not in oracle)
    assert 150 < len(oracle) < len(keys)


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"features.cache=\S+file/length: cannot be read or wri"):
        Cache(tmp_path / "file" / "length", writable=True)


def test_cut_at_every_byte_only_complete_lines_stay(tmp_path):
    values = {f"{i:016x}": i for i in range(4)}
    fill(tmp_path, values)
    file = tmp_path / "1-of-1.jsonl"
    content = file.read_bytes()
    for cut in range(0, len(content) + 1, 5):
        file.write_bytes(content[:cut])
        cache = Cache(tmp_path, writable=True)
        kept = content[:cut].count(b"\n")
        assert [cache.get(key) for key in values] == [0, 1, 2, 3][:kept] + [None] * (4 - kept)
        cache.close()
        assert file.read_bytes().count(b"\n") == kept and file.read_bytes() == b"".join(
            content.splitlines(keepends=True)[:kept]
        )


DAMAGED = (
    "rubbish", "[]", '{"key": "xyz", "value": 1}', '{"key": "1"}', '{"key": "1", "value": []}',
    '{"key": "11112222333344445", "value": 1}',
)  # fmt: skip


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_is_named(line, tmp_path):
    fill(tmp_path, {"1" * 16: True})
    file = tmp_path / "1-of-1.jsonl"
    file.write_text(line + "\n" + file.read_text())
    for writable in (True, False):
        with pytest.raises(UserError, match=r"1-of-1.jsonl:1: is damaged; remove the line"):
            Cache(tmp_path, writable=writable)


def test_a_second_writer_of_the_same_shard_is_refused(tmp_path):
    cache = Cache(tmp_path, (1, 2), writable=True)
    with pytest.raises(UserError, match="another process is writing it"):
        Cache(tmp_path, (1, 2), writable=True)
    Cache(tmp_path, (2, 2), writable=True).close()
    assert "0" * 16 not in Cache(tmp_path, writable=False)
    cache.close()
