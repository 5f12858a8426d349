"""`Weights`: the interface through which conversion and loading read a model's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from convert.mapping import Piece
from jaxs1.model.architecture import Architecture

#: Auxiliary files, which are copied along: tokenizer, chat template, generation config.
AUX_FILES = (
    "added_tokens.json",
    "additional_chat_templates/*.jinja",
    "chat_template*",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer*",
    "vocab.json",
)


class Weights(Protocol):
    """A model's weights, read piece by piece.

    Attributes:
        name: name of the source, for messages
        architecture: shapes and constants
        config: content of `config.json`, including unknown keys
        aux_files: folder with the `AUX_FILES`, if any
    """

    name: str
    architecture: Architecture
    config: dict[str, Any]
    aux_files: Path | None

    def dtype(self, path: str) -> np.dtype:
        """Dtype of a stored parameter."""

    def read(self, piece: Piece) -> np.ndarray:
        """Part of a parameter [piece.shape], bit for bit; safe to call from several threads."""

    def fingerprint(self) -> str | None:
        """Identifies the content: it changes whenever the content does. None where unknown."""
