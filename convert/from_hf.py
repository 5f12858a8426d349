"""Convert Hugging Face weights to an Orbax checkpoint: python -m convert.from_hf SRC DST.

SRC is a folder with safetensors or a hub id. The conversion is bit-exact and preserves dtypes;
tensors that do not match the architecture are an error. An interrupted conversion is resumed by
repeating the command. Several processes share the work:

    srun -n 16 python -m convert.from_hf SRC DST
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convert import orbax_io
from convert.mapping import parameters
from convert.transfer import transfer
from convert.weights import open_weights
from jaxs1.config import parse, run_command
from jaxs1.processes import ALONE, Process, choose_process
from jaxs1.storage import check_output


@dataclass(frozen=True)
class FromHf:
    """Convert Hugging Face weights to an Orbax checkpoint.

    Args:
        src: Hugging Face folder or hub id (owner/name)
        dst: folder to create; must not exist
        num_processes: number of processes that convert together, each started with this command;
            null: as the launcher says (srun, mpirun, GKE)
        process_id: number of this process, from 0; with num_processes
    """

    src: str
    dst: str
    num_processes: int | None = None
    process_id: int | None = None


def from_hf(src: str | Path, dst: str | Path, process: Process = ALONE) -> None:
    """Write the weights at `src` as the Orbax checkpoint `dst`.

    Args:
        src: source for `open_weights`
        dst: folder to create; must not exist
        process: this process, if several convert together; see `transfer`

    Raises:
        UserError: see `open_weights` and `transfer`.
    """
    weights = open_weights(src)
    dtypes = {path: weights.dtype(path) for path in parameters(weights.architecture)}
    writer = orbax_io.Writer(weights.architecture, dtypes)
    transfer(weights, writer, Path(dst), weights.config, process)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    options = parse(FromHf, argv, command="python -m convert.from_hf", positionals=("src", "dst"))
    process = choose_process(options.num_processes, options.process_id, os.environ)
    check_output(options.dst, setting="dst", folder=True, new=process.index == 0)
    from_hf(options.src, options.dst, process)


if __name__ == "__main__":
    run_command(main)
