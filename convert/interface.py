"""What conversion and loading know of a model's weights, wherever they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from convert.mapping import Piece
from jaxs1.model.architecture import Architecture

#: What travels along with weights: tokenizer, chat template, generation config.
SIDE_FILES = (
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
    """A model's weights.

    Attributes:
        name: for messages
        architecture: shapes and constants
        config: the whole `config.json`, unknown keys included
        aux_files: folder whose `SIDE_FILES` travel along, if any
    """

    name: str
    architecture: Architecture
    config: dict[str, Any]
    aux_files: Path | None

    def dtype(self, path: str) -> np.dtype:
        """The dtype in which a parameter is stored."""

    def read(self, piece: Piece) -> np.ndarray:
        """Part of a parameter [piece.shape], bit by bit; may be called from several threads."""

    def fingerprint(self) -> str | None:
        """Differs where the content differs; None where that cannot be told."""
