"""Convert Hugging Face weights to an Orbax checkpoint: python -m convert.from_hf SRC DST.

SRC is a folder with safetensors or a hub id. The conversion is bit-exact and preserves dtypes;
tensors that do not match the architecture are an error. An interrupted conversion is resumed by
repeating the command.
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
from jaxs1.storage import check_output


@dataclass(frozen=True)
class FromHf:
    """Convert Hugging Face weights to an Orbax checkpoint.

    Args:
        src: Hugging Face folder or hub id (owner/name)
        dst: folder to create; must not exist
    """

    src: str
    dst: str


def from_hf(src: str | Path, dst: str | Path) -> None:
    """Write the weights at `src` as the Orbax checkpoint `dst`.

    Raises:
        UserError: see `open_weights` and `transfer`.
    """
    weights = open_weights(src)
    dtypes = {path: weights.dtype(path) for path in parameters(weights.architecture)}
    writer = orbax_io.Writer(weights.architecture, dtypes)
    transfer(weights, writer, Path(dst), weights.config)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    options = parse(FromHf, argv, command="python -m convert.from_hf", positionals=("src", "dst"))
    check_output(options.dst, setting="dst", folder=True, new=True)
    from_hf(options.src, options.dst)


if __name__ == "__main__":
    run_command(main)
