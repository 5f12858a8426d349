"""The strict reader: each contradiction in a header is refused by name; sound files are read."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert import safetensors_io
from jaxs1.config import UserError


def write(path, header, body=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + body)
    return path


def entry(begin, end, dtype="F32", shape=None):
    size = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": size, "data_offsets": [begin, end]}


GOOD = {"a": entry(0, 8), "b": entry(8, 20)}


def test_a_sound_header_is_read(tmp_path):
    found = safetensors_io.read_header(write(tmp_path / "x", GOOD, bytes(20)))
    start = 8 + len(json.dumps(GOOD))
    assert {name: (e.start, e.shape, e.nbytes) for name, e in found.items()} == {
        "a": (start, (2,), 8),
        "b": (start + 8, (3,), 12),
    }


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        (GOOD, 19, "truncated: has 19 bytes of tensors, the header says 20"),
        (GOOD, 21, "truncated: has 21 bytes"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, 20, "'b' begins at byte 12, .* ends at 8"),
        ({"a": entry(0, 8), "b": entry(4, 20)}, 20, "'b' begins at byte 4, .* ends at 8"),
        ({"a": entry(4, 8)}, 8, "'a' begins at byte 4, .* ends at 0"),
        ({"a": entry(0, 8, shape=[3])}, 8, r"'a': F32 \[3\] does not fill data_offsets=\[0, 8\]"),
        ({"a": entry(8, 0, shape=[])}, 8, "'a': F32 .* does not fill"),
        ({"a": entry(0, 8, dtype="I64")}, 8, "'a': dtype='I64': must be one of BF16, F16, F32"),
        ({"a": entry(0, 8, dtype=["F32"])}, 8, "'a': dtype="),
        ({"a": entry(0, 8, shape=[-1, -2])}, 8, "'a': shape=.*must be a list of sizes"),
        ({"a": entry(0, 8, shape=[2.0])}, 8, "'a': shape="),
        ({"a": entry(0, 8, shape=[True, 2])}, 8, "'a': shape="),
        ({"a": entry(0, 8, shape="2")}, 8, "'a': shape="),
        ({"a": entry(0, 8) | {"data_offsets": [0, 4, 8]}}, 8, "'a': data_offsets=.*begin, end"),
        ({"a": entry(0, 8) | {"data_offsets": [-8, 0]}}, 8, "'a': data_offsets="),
        ({"a": entry(0, 8) | {"extra": 1}}, 8, "'a' must have dtype, shape and data_offsets"),
        ({"a": [0, 8]}, 8, "'a' must have dtype, shape and data_offsets"),
        ({"__metadata__": {"format": "pt", "n": 1}} | GOOD, 20, "must map strings to strings"),
        ({"__metadata__": []} | GOOD, 20, "must map strings to strings"),
        ({"__metadata__": {"format": "zip"}} | GOOD, 20, "format='zip': must be one of"),
        (b'{"a": 1, "a": 2}', 0, "a name occurs twice"),
        (b"[]", 0, "not one JSON object"),
        (b"{} {}", 0, "not one JSON object"),
        (b"{", 0, "not JSON"),
        (b'"\xff"', 0, "not UTF-8"),
        (b"[" * 100_000, 0, "not JSON"),
    ],
)
def test_a_malformed_header_is_refused(header, body, message, tmp_path):
    file = write(tmp_path / "x", header, bytes(body))
    with pytest.raises(UserError, match=message) as caught:
        safetensors_io.read_header(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [21, 1 << 40, (1 << 64) - 1])
def test_a_length_beyond_the_file_is_refused(length, tmp_path):
    file = write(tmp_path / "x", b"{}" + bytes(18), length=length)
    with pytest.raises(UserError, match="truncated, or not a safetensors file"):
        safetensors_io.read_header(file)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {}}, "non-empty object"),
        ({"weight_map": {"a": "../x"}}, "is not a file name"),
        ({"weight_map": {"a": ""}}, "is not a file name"),
        ({"weight_map": {"a": 3}}, "is not a file name"),
        ({}, "has no weight_map"),
        ([], "has no weight_map"),
    ],
)
def test_a_malformed_index_is_refused(index, message, tmp_path):
    (tmp_path / safetensors_io.INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        safetensors_io.read_folder(tmp_path)


@pytest.mark.parametrize("max_bytes", [1, 100, 10_000])
def test_planned_files_are_read_by_safetensors(max_bytes, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"t{i}": rng.normal(size=(i + 1, 5)).astype(np.float32) for i in range(6)}
    arrays["half"] = rng.normal(size=(3, 2)).astype(np.float16)
    shapes = {name: (x.dtype, x.shape) for name, x in arrays.items()}
    shards, entries = safetensors_io.plan(shapes, max_bytes)
    safetensors_io.write_prefixes(tmp_path, shards, entries)
    for name, x in arrays.items():
        for row in reversed(range(len(x))):
            safetensors_io.write_rows(tmp_path, entries[name], row, x[row : row + 1])
    largest = max(x.nbytes for x in arrays.values())
    assert all(shard.size - len(shard.prefix) <= max(max_bytes, largest) for shard in shards)
    assert (len(shards) > 1) == (max_bytes < 10_000)
    loaded = {}
    for shard in shards:
        assert os.path.getsize(tmp_path / shard.name) == shard.size
        loaded |= load_file(tmp_path / shard.name)
    assert all((loaded[name] == x).all() for name, x in arrays.items())
    assert set(safetensors_io.read_folder(tmp_path)) == set(arrays)


def test_rows_of_a_tensor_and_a_file_that_ends_early(tmp_path):
    x = np.arange(40, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(8, 5)
    save_file({"x": x}, tmp_path / "m.safetensors")
    (found,) = safetensors_io.read_header(tmp_path / "m.safetensors").values()
    rows = safetensors_io.read_rows(found, slice(2, 7))
    assert rows.dtype == x.dtype
    assert (rows == x[2:7]).all()
    os.truncate(found.file, found.start + 30)
    with pytest.raises(UserError, match="truncated at byte"):
        safetensors_io.read_rows(found, slice(2, 7))
