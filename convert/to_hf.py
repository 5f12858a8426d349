"""Convert weights to a Hugging Face folder: python -m convert.to_hf SRC DST [--dtype bfloat16].

SRC is an Orbax checkpoint, a training run or one of its steps, or Hugging Face weights whose dtype
or shard size is to change. An interrupted conversion is resumed by repeating the command. Several
processes share the work: srun -n 16 python -m convert.to_hf SRC DST.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from convert import safetensors_io
from convert.interface import Weights
from convert.mapping import Piece, pieces, tensors
from convert.transfer import transfer
from convert.weights import open_weights
from jaxs1.config import UserError, parse, run_command
from jaxs1.model.architecture import Architecture
from jaxs1.processes import ALONE, Process, choose_process
from jaxs1.storage import check_output

Dtype = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True)
class ToHf:
    """Convert weights to a Hugging Face folder.

    Args:
        src: Orbax checkpoint, training run or one of its steps, Hugging Face folder or hub id
        dst: folder to create; must not exist
        dtype: dtype of the written tensors; null preserves that of each tensor
        shard_gb: maximum size of a safetensors file [GB]
        num_processes: number of processes that convert together, each started with this command;
            null: as the launcher says (srun, mpirun, GKE)
        process_id: number of this process, from 0; with num_processes
    """

    src: str
    dst: str
    dtype: Dtype | None = None
    shard_gb: float = 5.0
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self) -> None:
        """Check that a shard can hold something."""
        if self.shard_gb <= 0:
            raise UserError(f"shard_gb={self.shard_gb}: must be positive; give a size in GB")


@dataclass(frozen=True)
class Writer:
    """Writes safetensors, piece by piece.

    Args:
        architecture: shapes of the model
        dtypes: dtype to write of each parameter, by path
        shard_bytes: maximum size of a file
    """

    architecture: Architecture
    dtypes: dict[str, np.dtype]
    shard_bytes: int

    @property
    def identity(self) -> str:
        """See `transfer.Writer`."""
        return repr([shard.prefix for shard in self._plan[0]])

    def prepare(self, folder: Path) -> None:
        """Write the headers and the index."""
        safetensors_io.write_prefixes(folder, *self._plan)

    def dtype(self, piece: Piece) -> np.dtype:
        """Dtype that a piece is written in."""
        return self.dtypes[piece.param]

    def write(self, folder: Path, piece: Piece, block: np.ndarray) -> Path:
        """Write a piece [piece.shape]; returns its file."""
        entry = self._plan[1][piece.hf]
        return safetensors_io.write_rows(folder, entry, piece.rows.start, piece.to_hf(block))

    @cached_property
    def _plan(self) -> tuple[list[safetensors_io.Shard], dict[str, safetensors_io.Entry]]:
        dtypes = {piece.hf: self.dtypes[piece.param] for piece in pieces(self.architecture)}
        shapes = tensors(self.architecture)
        return safetensors_io.plan(
            {name: (dtypes[name], shapes[name]) for name in shapes}, self.shard_bytes
        )


def to_hf(
    source: Weights | str | Path,
    dst: str | Path,
    dtype: Dtype | None = None,
    shard_bytes: int = 5_000_000_000,
    process: Process = ALONE,
) -> None:
    """Write weights as a Hugging Face folder.

    Args:
        source: open weights (training passes `InMemoryWeights`), or a source for `open_weights`
        dst: folder to create; must not exist
        dtype: dtype of the written tensors; None preserves that of each tensor
        shard_bytes: maximum size of a file
        process: this process, if several convert together; see `transfer`

    Raises:
        UserError: see `open_weights` and `transfer`.
    """
    weights = open_weights(source) if isinstance(source, str | Path) else source
    wanted = None if dtype is None else np.dtype(getattr(ml_dtypes, dtype, dtype))
    dtypes = {
        piece.param: wanted or weights.dtype(piece.param) for piece in pieces(weights.architecture)
    }
    writer = Writer(weights.architecture, dtypes, shard_bytes)
    config = _with_dtype(weights.config, dtypes["embedding"].name)
    transfer(weights, writer, Path(dst), config, process)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    options = parse(ToHf, argv, command="python -m convert.to_hf", positionals=("src", "dst"))
    process = choose_process(options.num_processes, options.process_id, os.environ)
    check_output(options.dst, setting="dst", folder=True, new=process.index == 0)
    to_hf(options.src, options.dst, options.dtype, int(options.shard_gb * 1e9), process)


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The config with another dtype, under the key that it already uses (new or old)."""
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
    return config | dict.fromkeys(keys, dtype)


if __name__ == "__main__":
    run_command(main)
