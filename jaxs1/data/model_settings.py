"""What a model's folder declares about its conversations, besides the tokenizer.

`generation_config.json` and `config.json` name the tokens that end an answer. A model that jaxs1
has trained also names the delimiters of its thinking, in `generation_config.json`:

    {"eos_token_id": [151645, 151643], "jaxs1": {"preset": "s1"}}

The settings are kept with the tokenizer, as `tokenizer.jaxs1`: everything that renders or ends a
conversation has the tokenizer at hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from jaxs1.config import UserError
from jaxs1.storage import explained

GENERATION_CONFIG = "generation_config.json"
FILES = (GENERATION_CONFIG, "config.json")
PRESETS = ("s1", "think_tags")


class ModelSettings(NamedTuple):
    """Settings of a model's folder.

    Args:
        preset: delimiters of thinking with which the model was trained; None if it does not say
        eos_ids: tokens that end an answer, besides the tokenizer's own
    """

    preset: str | None = None
    eos_ids: tuple[int, ...] = ()


def settings_of(tokenizer: Any) -> ModelSettings:
    """The settings that `attach_settings` stored."""
    return getattr(tokenizer, "jaxs1", ModelSettings())


def attach_settings(tokenizer: Any, folder: str | Path | None) -> None:
    """Keep a folder's settings with a tokenizer; a hub id, or a folder without the files, has none.

    Raises:
        UserError: see `read_settings`.
    """
    tokenizer.jaxs1 = read_settings(Path(folder)) if folder else ModelSettings()


def read_settings(folder: Path) -> ModelSettings:
    """The settings that a folder's files declare.

    Raises:
        UserError: a file that is not a JSON object, or a field with a value it cannot have.
    """
    ends: dict[int, None] = {}
    preset = None
    for name in FILES:
        if not (path := folder / name).is_file():
            continue
        content = _read_object(path)
        ends |= dict.fromkeys(_token_ids(content.get("eos_token_id"), f"{path}: eos_token_id"))
        if name == GENERATION_CONFIG:
            preset = _preset(content.get("jaxs1"), str(path))
    return ModelSettings(preset, tuple(ends))


def with_preset(generation_config: dict[str, Any], preset: str | None) -> dict[str, Any]:
    """The content of generation_config.json, declaring a preset unless it is None."""
    return generation_config | ({"jaxs1": {"preset": preset}} if preset else {})


def _read_object(path: Path) -> dict[str, Any]:
    with explained(path, verb="read"):
        text = path.read_bytes()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a JSON object, is a {type(content).__name__}")
    return content


def _token_ids(value: Any, name: str) -> list[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise UserError(f"{name}={value!r:.60}: must be a token id or a list of token ids; fix it")
    return ids


def _preset(value: Any, name: str) -> str | None:
    preset = value.get("preset") if isinstance(value, dict) else value
    if preset is not None and preset not in PRESETS:
        raise UserError(
            f"{name}: jaxs1.preset={preset!r:.60}: must be one of {', '.join(PRESETS)}; fix it"
        )
    return preset
