"""A Hugging Face checkpoint as one of ours (Orbax): python -m convert.from_hf SRC DST.

SRC is a folder with safetensors or a hub id. Dtypes are preserved, every number bit by bit; what
does not fit the architecture is an error. Interrupted and started again, it goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convert import orbax_io
from convert.mapping import parameters
from convert.transfer import transfer
from convert.weights import open_weights
from jaxs1.config import parse, run_command


@dataclass(frozen=True)
class FromHf:
    """Convert Hugging Face weights to a checkpoint of ours.

    Args:
        src: a Hugging Face folder or a hub id (owner/name)
        dst: the folder to be made; must not exist
    """

    src: str
    dst: str


def from_hf(src: str | Path, dst: str | Path) -> None:
    """Write the weights at `src` as a checkpoint of ours, `dst`; raises `UserError`."""
    weights = open_weights(src)
    dtypes = {path: weights.dtype(path) for path in parameters(weights.architecture)}
    writer = orbax_io.Writer(weights.architecture, dtypes)
    transfer(weights, writer, Path(dst), weights.config)


def main(argv: Sequence[str]) -> None:
    """The command."""
    options = parse(FromHf, argv, command="python -m convert.from_hf", positionals=("src", "dst"))
    from_hf(options.src, options.dst)


if __name__ == "__main__":
    run_command(main)
