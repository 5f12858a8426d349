"""Partial reads and writes of safetensors files; a model is one file, or shards with an index.

The format: the length of the header in 8 bytes (little endian), a JSON header with the dtype, shape
and offsets of each tensor, then the bytes of the tensors without gaps. The header is untrusted:
all of it is checked before anything is read. Files are not mapped into memory, because every page
touched would count as this process's own.

This module knows names, dtypes and shapes; `convert/mapping.py` knows what they mean.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert.transpose import bands
from jaxs1.config import UserError, listed

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

#: Supported dtypes, by their names in a header.
DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}

#: Those that quantized models, masks and float64 use.
OTHER_DTYPES = re.compile(r"BOOL|[UIFC]\d+(_E\dM\d)?")

#: First bytes of a file that stands for another one in a Git repository.
LFS_POINTER = b"version "

#: Frameworks that the metadata may name; transformers refuses others.
FORMATS = ("pt", "tf", "flax", "mlx")

MAX_HEADER_BYTES = 100_000_000
REMEDY = "download or copy the file again"


@dataclass(frozen=True)
class Entry:
    """Location of a tensor.

    Args:
        file: file that contains it
        dtype: dtype of its numbers
        shape: shape of the tensor
        start: offset from the beginning of the file [bytes]
    """

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor [bytes]."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """A file to write.

    Args:
        name: file name
        prefix: length field and header
        size: size of the file [bytes]
    """

    name: str
    prefix: bytes
    size: int


def has_weights(folder: Path) -> bool:
    """Whether a folder contains the safetensors of a model."""
    return (folder / SINGLE).exists() or (folder / INDEX).exists()


def read_folder(folder: Path) -> dict[str, Entry]:
    """Locate all tensors of a model, by name.

    Raises:
        UserError: a file is missing, truncated or malformed, or index and shards disagree.
    """
    if (folder / SINGLE).exists():
        if (folder / INDEX).exists():
            raise UserError(f"{folder}: holds both {SINGLE} and {INDEX}; remove the stale one")
        return read_header(folder / SINGLE)
    index = folder / INDEX
    file_of = _read_index(index)
    files = sorted(set(file_of.values()))
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise UserError(f"{index}: missing shards: {listed(missing, 80)}; {REMEDY}")
    found: dict[str, Entry] = {}
    wrong = []
    for file in files:
        for name, entry in read_header(folder / file).items():
            if file_of.get(name) != file:
                wrong.append(f"{name} is in {file}, the index says {file_of.get(name, 'nowhere')}")
            found[name] = entry
    wrong += [f"{name} is not in {file}" for name, file in file_of.items() if name not in found]
    if wrong:
        raise UserError(f"{index}: index and shards disagree: {listed(wrong, 160)}")
    return found


def read_header(file: Path) -> dict[str, Entry]:
    """Locate the tensors of one file, in the order of their offsets.

    Raises:
        UserError: the file is unreadable, truncated or malformed.
    """
    try:
        with open(file, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            start = f.read(8)
            length = int.from_bytes(start, "little")
            if start == LFS_POINTER:
                raise _Malformed("a pointer of Git LFS, not the file (git lfs pull gets it)")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise _Malformed(f"truncated, or not a safetensors file ({size} bytes)")
            text = f.read(length)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); {REMEDY}") from None
    except _Malformed as error:
        raise UserError(f"{file}: {error}; {REMEDY}") from None
    try:
        return _entries(file, _decode(text), 8 + length, size)
    except _Unsupported as error:
        raise UserError(f"{file}: {error}") from None
    except _Malformed as error:
        raise UserError(f"{file}: corrupt: {error}; {REMEDY}") from None


def read_rows(entry: Entry, rows: slice) -> np.ndarray:
    """Read rows of a tensor's first axis, in the dtype of the file."""
    row_bytes = math.prod(entry.shape[1:]) * entry.dtype.itemsize
    shape = (rows.stop - rows.start, *entry.shape[1:])
    return read_at(entry.file, entry.start + rows.start * row_bytes, shape, entry.dtype)


def read_at(path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Read an array at a byte offset of a file; raises `UserError` if the file ends early."""
    block = np.empty(shape, dtype)
    view = block.reshape(-1).view(np.uint8).data
    with open(path, "rb", buffering=0) as f:
        f.seek(offset)
        while view:  # one call reads at most 2 GB
            n = f.readinto(view)
            if not n:
                raise UserError(f"{path}: truncated at byte {f.tell()}; {REMEDY}")
            view = view[n:]
    return block


def plan(
    tensors: dict[str, tuple[np.dtype, tuple[int, ...]]], max_bytes: int
) -> tuple[list[Shard], dict[str, Entry]]:
    """Distribute tensors over files of at most `max_bytes` each (more if one tensor is larger).

    Returns:
        The files, and the location of each tensor (with bare file names).
    """
    groups: list[dict[str, tuple[np.dtype, tuple[int, ...]]]] = [{}]
    filled = 0
    for name, (dtype, shape) in tensors.items():
        nbytes = math.prod(shape) * dtype.itemsize
        if groups[-1] and filled + nbytes > max_bytes:
            groups.append({})
            filled = 0
        groups[-1][name] = (dtype, shape)
        filled += nbytes
    shards, entries = [], {}
    for i, group in enumerate(groups, 1):
        file = SINGLE if len(groups) == 1 else f"model-{i:05}-of-{len(groups):05}.safetensors"
        shard, located = _plan_file(file, group)
        shards.append(shard)
        entries.update(located)
    return shards, entries


def write_prefixes(folder: Path, shards: list[Shard], entries: dict[str, Entry]) -> None:
    """Create the files with their headers and final sizes, and the index if there are several.

    Tensors in existing files are kept.
    """
    for shard in shards:
        fd = os.open(folder / shard.name, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(fd, shard.prefix, 0)
            os.ftruncate(fd, shard.size)
        finally:
            os.close(fd)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(entry.nbytes for entry in entries.values())},
            "weight_map": {name: str(entry.file) for name, entry in sorted(entries.items())},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def write_rows(folder: Path, entry: Entry, start: int, block: np.ndarray) -> Path:
    """Write rows of a tensor, beginning with row `start`; returns the file."""
    row_bytes = math.prod(entry.shape[1:]) * entry.dtype.itemsize
    write_at(folder / entry.file, entry.start + start * row_bytes, block)
    return folder / entry.file


def write_at(path: Path, offset: int, array: np.ndarray) -> None:
    """Write an array in C order at a byte offset of a file, which is created if missing."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        for band in bands(array):
            view = band.reshape(-1).view(np.uint8).data
            while view:  # one call writes at most 2 GB
                n = os.pwrite(fd, view, offset)
                view, offset = view[n:], offset + n
    finally:
        os.close(fd)


class _Malformed(ValueError):
    """What is wrong with a file; the caller adds the file's name."""


class _Unsupported(_Malformed):
    """What is not supported in a sound file."""


def _plan_file(file: str, group: dict[str, Any]) -> tuple[Shard, dict[str, Entry]]:
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in group.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": names[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    prefix = len(text).to_bytes(8, "little") + text
    entries = {
        name: Entry(Path(file), dtype, shape, len(prefix) + header[name]["data_offsets"][0])
        for name, (dtype, shape) in group.items()
    }
    return Shard(file, prefix, len(prefix) + end), entries


def _read_index(index: Path) -> dict[str, str]:
    """The file of each tensor, from an index."""
    try:
        content = json.loads(index.read_bytes(), object_pairs_hook=_unique)
        file_of = content["weight_map"]
        if not isinstance(file_of, dict) or not file_of:
            raise _Malformed("weight_map must be a non-empty object")
        for name, file in file_of.items():
            if (
                not isinstance(file, str)
                or os.path.basename(file) != file
                or not 0 < len(file) < 256
            ):
                raise _Malformed(f"weight_map: {name!r:.80}: {file!r:.60} is not a file name")
    except OSError as error:
        raise UserError(f"{index}: cannot be read ({error.strerror}); {REMEDY}") from None
    except (KeyError, TypeError):
        raise UserError(f"{index}: has no weight_map; {REMEDY}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{index}: corrupt: {error}; {REMEDY}") from None
    return file_of


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; duplicate names are an error."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise _Malformed("a name occurs twice")
    return content


def _decode(text: bytes) -> dict[str, Any]:
    """The JSON object of a header; only spaces may follow it."""
    try:
        header, end = json.JSONDecoder(object_pairs_hook=_unique).raw_decode(text.decode())
    except UnicodeDecodeError:
        raise _Malformed("the header is not UTF-8") from None
    except _Malformed as error:
        raise _Malformed(f"header: {error}") from None
    except (ValueError, RecursionError) as error:
        raise _Malformed(f"the header is not JSON ({error})") from None
    if not isinstance(header, dict) or text.decode()[end:].strip(" "):
        raise _Malformed("the header is not one JSON object")
    return header


def _entries(file: Path, header: dict[str, Any], start: int, size: int) -> dict[str, Entry]:
    """The tensors of a checked header.

    Args:
        file: file that it is the header of
        header: decoded JSON, untrusted
        start: offset of the first tensor in the file [bytes]
        size: size of the file [bytes]

    Raises:
        _Malformed: fields are missing, of a wrong type, or contradict each other or the file size.
    """
    _check_metadata(header.pop("__metadata__", None))
    ranges = {name: _byte_range(name, fields) for name, fields in header.items()}
    ordered = sorted(ranges, key=lambda name: ranges[name])
    _check_contiguous([(name, *ranges[name]) for name in ordered], size - start)
    return {
        name: Entry(
            file,
            DTYPES[header[name]["dtype"]],
            tuple(header[name]["shape"]),
            start + ranges[name][0],
        )
        for name in ordered
    }


def _check_metadata(metadata: Any) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise _Malformed("__metadata__ must map strings to strings")
    if metadata.get("format") not in FORMATS:
        raise _Malformed(
            f"__metadata__: format={metadata.get('format')!r:.40}: must be one of {FORMATS}"
        )


def _byte_range(name: str, fields: Any) -> tuple[int, int]:
    """The data_offsets of a tensor, once its fields have been checked against each other."""
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise _Malformed(f"{name!r:.80} must have dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        wrong = f"{name!r:.80}: dtype={dtype!r:.40}: must be one of {', '.join(DTYPES)}"
        if isinstance(dtype, str) and OTHER_DTYPES.fullmatch(dtype):
            raise _Unsupported(f"{wrong}; quantized models are not supported, give the original")
        raise _Malformed(wrong)
    if not _is_counts(shape):
        raise _Malformed(f"{name!r:.80}: shape={shape!r:.40}: must be a list of sizes")
    if not _is_counts(offsets) or len(offsets) != 2:
        raise _Malformed(f"{name!r:.80}: data_offsets={offsets!r:.40}: must be [begin, end]")
    begin, end = offsets
    if math.prod(shape) * DTYPES[dtype].itemsize != end - begin:
        raise _Malformed(
            f"{name!r:.80}: {dtype} {shape!s:.40} does not fill data_offsets={offsets!s:.60}"
        )
    return begin, end


def _check_contiguous(ranges: list[tuple[str, int, int]], size: int) -> None:
    """Check that sorted (name, begin, end) cover `size` bytes without gap or overlap."""
    covered = 0
    for name, begin, end in ranges:
        if begin != covered:
            raise _Malformed(
                f"{name!r:.80} begins at byte {begin}, the one before ends at {covered}"
            )
        covered = end
    if covered != size:
        raise _Malformed(f"truncated: has {size} bytes of tensors, the header says {covered}")


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
