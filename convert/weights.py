"""Weights, wherever they lie, read piece by piece in our layout.

    weights = open_weights("Transformer/Qwen2.5-0.5B")         # or a folder: Hugging Face's or ours
    params = load_params(weights, transformer.abstract(weights.architecture, compute, rules))

`Weights` is what conversion and loading know of a checkpoint: a Hugging Face folder or one of ours,
live arrays (`live.py`), weights with an adapter (`adapter.py`). What is in a folder decides how it
is read, not its name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from convert import orbax_io, safetensors_io
from convert.adapter import Adapter, MergedWeights
from convert.interface import SIDE_FILES, Weights
from convert.mapping import Piece, parameters, pieces, tensors
from convert.slices import bounds, intersect, relative
from convert.transpose import copy
from jaxs1.config import UserError, one_line
from jaxs1.model import transformer
from jaxs1.model.architecture import Architecture, read_config

#: Pieces that are read at the same time.
READERS = 2


class HfWeights:
    """A Hugging Face folder: config.json and safetensors."""

    def __init__(self, folder: Path):
        """Check names, shapes and dtypes; raises `UserError` with all that is wrong."""
        self.name = str(folder)
        self.aux_files: Path | None = folder
        self.config, self.architecture = _read_architecture(folder)
        self._entries = safetensors_io.read_folder(folder)
        expected = tensors(self.architecture)
        redundant = self.architecture.tie_word_embeddings and "lm_head.weight" in self._entries
        head = self._entries.pop("lm_head.weight") if redundant else None
        found = {name: entry.shape for name, entry in self._entries.items()}
        compare(self.name, expected, found, "tensors")
        self._dtypes: dict[str, np.dtype] = {}
        for piece in pieces(self.architecture):
            dtype = self._entries[piece.hf].dtype
            if self._dtypes.setdefault(piece.ours, dtype) != dtype:
                raise UserError(
                    f"{self.name}: {piece.hf} is {dtype}, the same tensor of other layers is "
                    f"{self._dtypes[piece.ours]}; all layers must have one dtype"
                )
        if head is not None:
            self._check_head(head)

    def dtype(self, path: str) -> np.dtype:
        """See `Weights`."""
        return self._dtypes[path]

    def read(self, piece: Piece) -> np.ndarray:
        """See `Weights`."""
        return piece.to_ours(safetensors_io.read_rows(self._entries[piece.hf], piece.rows))

    def fingerprint(self) -> str:
        """See `Weights`."""
        return _stamp({entry.file for entry in self._entries.values()}, self.config)

    def _check_head(self, head: safetensors_io.Entry) -> None:
        """A tied model may repeat its embedding as the head, but nothing else."""
        embedding = self._entries["model.embed_tokens.weight"]
        same = (head.shape, head.dtype) == (embedding.shape, embedding.dtype)
        for piece in pieces(self.architecture):
            if same and piece.ours == "embedding":
                ours, theirs = (safetensors_io.read_rows(e, piece.rows) for e in (embedding, head))
                same = ours.tobytes() == theirs.tobytes()
        if not same:
            raise UserError(
                f"{self.name}: tie_word_embeddings=true, but lm_head.weight differs from "
                "model.embed_tokens.weight; set it to false in config.json, or remove the tensor"
            )


class OrbaxWeights:
    """A checkpoint of ours: `params/` with a config.json beside it, or a step of a training run."""

    def __init__(self, params: Path, aux_files: Path):
        """Check names, shapes and dtypes; raises `UserError` with all that is wrong."""
        self.name = str(params.parent)
        self.aux_files: Path | None = aux_files
        self.config, self.architecture = _read_architecture(aux_files)
        self._params, self._arrays = params, orbax_io.read_arrays(params)
        found = {path: array.shape for path, array in self._arrays.items()}
        compare(self.name, parameters(self.architecture), found, "parameters")

    def dtype(self, path: str) -> np.dtype:
        """See `Weights`."""
        return self._arrays[path].dtype

    def read(self, piece: Piece) -> np.ndarray:
        """See `Weights`."""
        return self._arrays[piece.ours].read(piece.index)

    def fingerprint(self) -> str:
        """See `Weights`."""
        return _stamp({path for path in self._params.rglob("*") if path.is_file()}, self.config)


def open_weights(source: str | Path) -> Weights:
    """Weights from a folder, or from the hub where there is no such folder.

    Args:
        source: a Hugging Face folder, a checkpoint of ours, a training run (its newest finished
            step is taken), one step of it, or a hub id "owner/name"; where adapters were trained,
            they are merged with the weights that they were trained on

    Raises:
        UserError: nothing was found (says what was looked for), or what was found is damaged.
    """
    folder = Path(source)
    if not folder.exists():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
            raise UserError(f"{source}: no such folder; give a folder or a hub id (owner/name)")
        folder = _download(str(source))
    ours, hf = (folder / "params").is_dir(), safetensors_io.has_weights(folder)
    if ours and hf:
        raise UserError(f"{folder}: holds both safetensors and params/; remove one of them")
    if hf:
        return HfWeights(folder)
    if ours:
        run = folder.parent.parent
        beside = (folder / "config.json").exists() or not (run / "model").is_dir()
        return OrbaxWeights(folder / "params", folder if beside else run / "model")
    if (folder / "adapter").is_dir():
        return _merged(folder, folder.parent.parent / "model")
    if step := _newest_step(folder / "checkpoints"):
        return open_weights(step)
    raise UserError(
        f"{folder}: no weights; looked for {safetensors_io.SINGLE}, {safetensors_io.INDEX}, params/ and "
        "checkpoints/<step>/params"
    )


def _merged(step: Path, model: Path) -> MergedWeights:
    """A step that holds an adapter, with the weights that it was trained on."""
    adapter = Adapter.from_step(step, model)
    return MergedWeights(open_weights(adapter.config["base_model_name_or_path"]), adapter, model)


def load_params(
    weights: Weights, model: transformer.Transformer, dtype: Any = None
) -> dict[str, Any]:
    """The parameters of `model` as sharded arrays.

    One parameter after another is put together on the host, layer by layer, and only the parts
    that this process's devices hold.

    Args:
        weights: where they come from
        model: whose they become, usually `transformer.abstract(...)`
        dtype: of the arrays; None takes the model's

    Raises:
        UserError: names or shapes differ, all of them listed.
    """
    wanted = flatten_dict(transformer.parameters(model), sep=".")
    layouts = flatten_dict(transformer.shardings(model), sep=".")
    expected = {path: tuple(array.shape) for path, array in wanted.items()}
    compare(weights.name, expected, parameters(weights.architecture), "parameters")
    by_path: dict[str, list[Piece]] = {path: [] for path in wanted}
    for piece in pieces(weights.architecture):
        by_path[piece.ours].append(piece)
    loaded = {}
    for path, array in wanted.items():
        target = np.dtype(array.dtype if dtype is None else dtype)
        loaded[path] = _load(weights, by_path[path], array.shape, layouts[path], target)
    return unflatten_dict(loaded, sep=".")


def cast(block: np.ndarray, dtype: np.dtype, path: str) -> np.ndarray:
    """Change a block's dtype; raises `UserError` where a number becomes infinite."""
    if block.dtype == dtype:
        return block
    with np.errstate(over="ignore", invalid="ignore"):
        out = block.astype(dtype)
    if dtype == np.float16:
        lost = int(np.isinf(out).sum()) - int(np.isinf(block).sum())
        if lost:
            raise UserError(
                f"dtype=float16: {lost} numbers of {path} are beyond its range (65504); "
                "give bfloat16 or float32"
            )
    return out


def _load(
    weights: Weights, parts: list[Piece], shape: Any, layout: Any, dtype: np.dtype
) -> jax.Array:
    """One parameter. Devices that hold the same part share its buffer."""
    indices = layout.addressable_devices_indices_map(shape)
    places = {device: tuple(bounds(index, shape)) for device, index in indices.items()}
    keys = {device: str(place) for device, place in places.items()}
    held = {keys[device]: place for device, place in places.items()}
    buffers = {
        key: np.empty([s.stop - s.start for s in place], dtype) for key, place in held.items()
    }

    def fill(piece: Piece) -> None:
        overlaps = {key: intersect(piece.index, place) for key, place in held.items()}
        if not any(overlaps.values()):
            return
        block = cast(weights.read(piece), dtype, piece.ours)
        for key, inside in overlaps.items():
            if inside is not None:
                part = block[relative(inside, piece.index)]
                copy(buffers[key][relative(inside, held[key])], part)

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(fill, parts))
    arrays = [jax.device_put(buffers[keys[device]], device) for device in indices]
    return jax.make_array_from_single_device_arrays(shape, layout, arrays)


def _read_architecture(folder: Path) -> tuple[dict[str, Any], Architecture]:
    path = folder / "config.json"
    config = read_config(path)
    try:
        return config, Architecture.from_hf(config, str(path))
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: corrupt ({error}); copy it again") from None


def compare(name: str, expected: Mapping[str, Any], found: Mapping[str, Any], noun: str) -> None:
    """Raise one error that lists every missing, extra and misshapen name."""
    wrong = []
    if missing := [path for path in expected if path not in found]:
        wrong.append(f"missing: {', '.join(missing)}")
    if extra := [path for path in found if path not in expected]:
        wrong.append(f"extra: {', '.join(extra)}")
    misshapen = [
        f"{path} is {list(found[path])}, must be {list(shape)}"
        for path, shape in expected.items()
        if path in found and tuple(found[path]) != tuple(shape)
    ]
    if misshapen:
        wrong.append(f"misshapen: {', '.join(misshapen)}")
    if wrong:
        raise UserError(f"{name}: {noun} do not fit the architecture: {'; '.join(wrong)}")


def _newest_step(checkpoints: Path) -> Path | None:
    """A step is finished when Orbax has given it its final name, which is a number."""
    steps = [p for p in checkpoints.glob("*") if p.name.isdecimal() and p.is_dir()]
    return max(steps, key=lambda step: int(step.name), default=None)


def _download(hub_id: str) -> Path:
    """A hub model's files in the local cache; what is there already is not fetched again."""
    import huggingface_hub

    wanted = ["config.json", "*.safetensors", safetensors_io.INDEX, *SIDE_FILES]
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=wanted))
    except Exception as error:  # the hub's and its HTTP client's many kinds
        reason = one_line(error)[:200]
        raise UserError(
            f"{hub_id}: no such folder, and the hub does not give it ({type(error).__name__}: "
            f"{reason}); check the name and the network, or give a folder"
        ) from None


def _stamp(files: set[Path], config: dict[str, Any]) -> str:
    """Identifies a checkpoint by its files' names, sizes and times of change."""
    facts = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(repr((sorted(facts), config)).encode()).hexdigest()
