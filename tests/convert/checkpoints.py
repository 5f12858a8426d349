"""Small Hugging Face folders with random bits, for the tests of this room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from convert import mapping
from jaxs1.model.architecture import Architecture

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "configs/models").glob("*.json"))
BITS = {"bfloat16": np.uint16, "float16": np.uint16, "float32": np.uint32}
CODES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
