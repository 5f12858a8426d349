"""Settings of the training data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jaxs1.data.delimiters import Preset


@dataclass(frozen=True)
class DataConfig:
    """Training data.

    Args:
        path: JSONL or Parquet file, or id of a hub dataset (owner/name)
        split: Split of a hub dataset
        format: Format of the records; auto detects it from the columns
        fields: Field to column name, e.g. '{"question": "prompt"}' reads question from prompt
        preset: Delimiters of thinking: s1, or think_tags (R1 distills, QwQ, Qwen3); auto takes what
            the model's folder declares, think_tags if tokenizer or chat template have </think>,
            and s1 otherwise
        block_size: Maximum length of an example [tokens]
        overlong: Handling of examples longer than block_size: drop and count them, or fail
        limit: Number of records to use, the first ones; null uses all
        rows: Rows per micro-batch into which sequences are packed; null chooses the fastest
        row_multiple: Multiple to which row lengths are rounded up, to compile few shapes [tokens]
    """

    path: str = ""
    split: str = "train"
    format: Literal["auto", "s1k", "s1k-1.1", "messages", "gsm8k", "text"] = "auto"
    fields: dict[str, str] = field(default_factory=dict)
    preset: Preset = "auto"
    block_size: int = 32768
    overlong: Literal["drop", "error"] = "drop"
    limit: int | None = None
    rows: int | None = None
    row_multiple: int = 1024
