"""The tokens at which generation stops: `eos_token_id` of config.json and generation_config.json.

transformers' `generate` reads generation_config.json, and config.json only where that is missing;
other programs read config.json alone. A model that was trained to end its turns with another token
than before would never stop, unless both name it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxs1.data.model_settings import GENERATION_CONFIG
from jaxs1.model.architecture import read_config
from jaxs1.model.hf_config import token_ids


def read_generation_config(folder: Path | None) -> dict[str, Any]:
    """The content of a folder's generation_config.json, empty if there is none.

    Raises:
        UserError: it is malformed.
    """
    path = folder / GENERATION_CONFIG if folder else None
    return read_config(path) if path and path.exists() else {}


def stop_token_ids(config: dict[str, Any], folder: Path | None) -> tuple[int, ...]:
    """All tokens at which a model's two files say that generation stops, without repetitions.

    Args:
        config: content of config.json
        folder: folder that may have a generation_config.json

    Raises:
        UserError: an `eos_token_id` is neither a token id nor a list of them.
    """
    generation = read_generation_config(folder)
    declared = token_ids(config, "eos_token_id", "config.json")
    return tuple(dict.fromkeys((*declared, *token_ids(generation, "eos_token_id", str(folder)))))


def with_stop_tokens(
    config: dict[str, Any], folder: Path | None, *ids: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The contents of both files, in which `eos_token_id` holds more tokens.

    Args:
        config: content of config.json
        folder: folder that may have a generation_config.json
        ids: tokens that come before those that either file declares; None is left out

    Returns:
        Contents of config.json and generation_config.json; both name the same tokens.

    Raises:
        UserError: see `stop_token_ids`.
    """
    stops = dict.fromkeys(i for i in (*ids, *stop_token_ids(config, folder)) if i is not None)
    eos = {"eos_token_id": list(stops) if len(stops) > 1 else next(iter(stops), None)}
    return config | eos, read_generation_config(folder) | eos
