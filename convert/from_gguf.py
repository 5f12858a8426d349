"""Convert a GGUF file to a Hugging Face folder: python -m convert.from_gguf FILE OUT.

The tensors are dequantised, the tokenizer is converted by transformers. A converted model is no
better than the quantized one: prefer the weights that it was made from, where there are any.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from convert.gguf_weights import GgufWeights
from convert.to_hf import Dtype, to_hf
from jaxs1.config import UserError, one_line, parse, run_command
from jaxs1.storage import check_output


@dataclass(frozen=True)
class FromGguf:
    """Convert a GGUF file to a Hugging Face folder.

    Args:
        file: GGUF file
        out: folder to create; must not exist
        dtype: dtype of the written tensors; float32 holds all values exactly
    """

    file: str
    out: str
    dtype: Dtype = "float32"


def from_gguf(file: str | Path, out: str | Path, dtype: Dtype = "float32") -> None:
    """Write the model in a GGUF file as a Hugging Face folder.

    Args:
        file: GGUF file
        out: folder to create; must not exist
        dtype: dtype of the written tensors

    Raises:
        UserError: see `GgufWeights` and `transfer`; or the tokenizer cannot be converted.
    """
    weights = GgufWeights(Path(file))
    with _tokenizer(Path(file)) if weights.has_tokenizer else contextlib.nullcontext() as folder:
        weights.aux_files = folder
        to_hf(weights, out, dtype)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    options = parse(
        FromGguf, argv, command="python -m convert.from_gguf", positionals=("file", "out")
    )
    check_output(options.out, setting="out", folder=True)
    from_gguf(options.file, options.out, options.dtype)


@contextlib.contextmanager
def _tokenizer(file: Path) -> Iterator[Path]:
    """A temporary folder with the tokenizer files that transformers makes from a GGUF file."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(file.parent.resolve()), gguf_file=file.name, trust_remote_code=False
            )
            tokenizer.save_pretrained(folder)
        except Exception as error:  # of many kinds: the vocabulary is untrusted
            reason = f"{type(error).__name__}: {one_line(error)[:150]}"
            raise UserError(
                f"{file}: transformers cannot convert its tokenizer ({reason}); give the Hugging "
                "Face folder that it was made from"
            ) from None
        yield Path(folder)


if __name__ == "__main__":
    run_command(main)
