"""Open a model's weights, whatever their format, and load them as sharded arrays.

    weights = open_weights("Qwen/Qwen2.5-0.5B")     # or a folder: Hugging Face or Orbax
    params = load_params(weights, transformer.abstract(weights.architecture, compute, rules))

All formats implement `Weights`: Hugging Face folders and Orbax checkpoints (below), parameters in
memory (`in_memory.py`), weights with an adapter (`adapter.py`). The format is detected from the
files in a folder, not from its name.
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
from jax.typing import DTypeLike

from convert import orbax_io, safetensors_io
from convert.adapter import Adapter, MergedWeights
from convert.assembly import READERS, as_parameter, load, load_quantized, load_together
from convert.exchange import Exchange
from convert.foreign import ADAPTER, foreign_companions, foreign_files, foreign_names
from convert.fused_experts import split_experts
from convert.interface import AUX_FILES, Weights
from convert.mapping import Piece, Shape, parameters, pieces, tensors
from jaxs1.config import UserError, listed, one_line
from jaxs1.model import transformer
from jaxs1.model.architecture import Architecture, read_config
from jaxs1.model.decode_params import Key, assemble, in_layers, stored
from jaxs1.model.quantization import Int8
from jaxs1.model.transformer import Transformer


class HfWeights:
    """A Hugging Face folder: config.json and safetensors."""

    def __init__(self, folder: Path):
        """Check names, shapes and dtypes; raises a `UserError` that lists the mismatches."""
        self.name = str(folder)
        self.aux_files: Path | None = folder
        self.config, self.architecture = _read_architecture(folder)
        _refuse(self.name, foreign_companions(folder))
        entries = split_experts(safetensors_io.read_folder(folder))
        # older checkpoints store the rotary frequencies, which rope_theta determines
        self._entries = {n: entry for n, entry in entries.items() if ".rotary_emb." not in n}
        expected = tensors(self.architecture)
        redundant = self.architecture.tie_word_embeddings and "lm_head.weight" in self._entries
        head = self._entries.pop("lm_head.weight") if redundant else None
        found = {name: entry.shape for name, entry in self._entries.items()}
        _refuse(self.name, foreign_names(expected, found))
        compare(self.name, expected, found, "tensors")
        self._dtypes: dict[str, np.dtype] = {}
        for piece in pieces(self.architecture):
            dtype = self._entries[piece.hf].dtype
            if self._dtypes.setdefault(piece.param, dtype) != dtype:
                raise UserError(
                    f"{self.name}: {piece.hf} is {dtype}, the same tensor of other layers is "
                    f"{self._dtypes[piece.param]}; all layers must have the same dtype"
                )
        if head is not None:
            self._check_head(head)

    def dtype(self, path: str) -> np.dtype:
        """See `Weights`."""
        return self._dtypes[path]

    def read(self, piece: Piece) -> np.ndarray:
        """See `Weights`."""
        return piece.to_param(safetensors_io.read_rows(self._entries[piece.hf], piece.rows))

    def fingerprint(self) -> str:
        """See `Weights`."""
        return _fingerprint({entry.file for entry in self._entries.values()}, self.config)

    def _check_head(self, head: safetensors_io.Entry) -> None:
        """The head of a tied model must be a copy of its embedding."""
        embedding = self._entries["model.embed_tokens.weight"]
        same = (head.shape, head.dtype) == (embedding.shape, embedding.dtype)
        for piece in pieces(self.architecture):
            if same and piece.param == "embedding":
                a, b = (safetensors_io.read_rows(e, piece.rows) for e in (embedding, head))
                same = a.tobytes() == b.tobytes()
        if not same:
            raise UserError(
                f"{self.name}: tie_word_embeddings=true, but lm_head.weight differs from "
                "model.embed_tokens.weight; set it to false in config.json, or remove the tensor"
            )


class OrbaxWeights:
    """An Orbax checkpoint: one that `from_hf` has written, or a step of a training run.

    Args:
        params: folder of the parameters
        aux_files: folder of config.json and the tokenizer files
    """

    def __init__(self, params: Path, aux_files: Path):
        """Check names and shapes; raises a `UserError` that lists the mismatches."""
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
        return self._arrays[piece.param].read(piece.index)

    def fingerprint(self) -> str:
        """See `Weights`."""
        files = {path for path in self._params.rglob("*") if path.is_file()}
        return _fingerprint(files, self.config)


def open_weights(source: str | Path) -> Weights:
    """Open weights in a folder, or on the hub if there is no such folder.

    Args:
        source: Hugging Face folder, Orbax checkpoint, training run (its newest finished step is
            read) or one of its steps, or hub id "owner/name". A step that contains an adapter is
            merged with the base weights.

    Raises:
        UserError: no weights were found (the message lists the file names tried), or they are
            damaged.
    """
    folder = Path(source)
    if not folder.exists():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
            raise UserError(f"{source}: no such folder; give a folder or a hub id (owner/name)")
        folder = _download(str(source))
    is_orbax, is_hf = (folder / "params").is_dir(), safetensors_io.has_weights(folder)
    if is_orbax and is_hf:
        raise UserError(f"{folder}: holds both safetensors and params/; remove one of them")
    if is_hf:
        return HfWeights(folder)
    if is_orbax:
        model = folder.parent.parent / "model"  # of a training run
        has_config = (folder / "config.json").exists() or not model.is_dir()
        return OrbaxWeights(folder / "params", folder if has_config else model)
    if (folder / "adapter").is_dir():
        return _merged(folder, folder.parent.parent / "model")
    if step := _newest_step(folder / "checkpoints"):
        return open_weights(step)
    _refuse(str(folder), foreign_files(folder))
    raise UserError(
        f"{folder}: no weights; looked for {safetensors_io.SINGLE}, {safetensors_io.INDEX}, "
        "params/ and checkpoints/<step>/params"
    )


def _merged(step: Path, model: Path) -> MergedWeights:
    """A step that contains an adapter, merged with the weights that it was trained on."""
    adapter = Adapter.from_step(step, model)
    base = open_weights(adapter.config["base_model_name_or_path"])
    return MergedWeights(base, adapter, model, read_config(model / "config.json"))


def load_params(
    weights: Weights, model: Transformer, dtype: DTypeLike | None = None
) -> transformer.Params:
    """Load the parameters of a model as sharded arrays, with layers stacked.

    One parameter after another is assembled on the host, piece by piece, and only the parts that
    this process's devices hold. If the mesh has devices of several processes, all of them must call
    this; each reads its share of the pieces.

    Args:
        weights: source
        model: usually `transformer.abstract(...)`
        dtype: dtype of the arrays; None takes that of the model

    Raises:
        UserError: names or shapes differ from the model's; the message lists them.
    """
    _check_architecture(weights, model)
    shapes = flatten_dict(transformer.parameters(model), sep=".")
    shardings = flatten_dict(transformer.shardings(model), sep=".")
    by_path: dict[str, list[Piece]] = {path: [] for path in shapes}
    for piece in pieces(weights.architecture):
        by_path[piece.param].append(piece)
    targets = {
        path: jax.ShapeDtypeStruct(
            x.shape, x.dtype if dtype is None else dtype, sharding=shardings[path]
        )
        for path, x in shapes.items()
    }
    exchange = Exchange(model.rules.mesh.devices.flat)
    with ThreadPoolExecutor(READERS) as pool:
        if len(exchange.processes) > 1:
            loaded = load_together(weights, by_path, targets, exchange, pool)
        else:
            loaded = {
                path: load(weights, by_path[path], as_parameter(target), run=pool.map)
                for path, target in targets.items()
            }
    return unflatten_dict(loaded, sep=".")


def load_decode_params(weights: Weights, model: Transformer) -> transformer.Params:
    """Load the parameters of a model as decoding stores them; see `jaxs1.model.decode_params`.

    The arrays of each layer are loaded straight into their final form, so that a device never holds
    more than `decode_params.loading_peak`.

    Args:
        weights: source
        model: usually `transformer.abstract(...)`

    Raises:
        UserError: names or shapes differ from the model's; the message lists them.
    """
    _check_architecture(weights, model)
    targets = stored(model)
    by_key: dict[Key, list[Piece]] = {}
    for piece in pieces(weights.architecture):
        layer = piece.index[0].start if in_layers(piece.param) else None
        by_key.setdefault((piece.param, layer), []).append(piece)

    def load_key(key: Key) -> jax.Array | Int8:
        path, layer = key
        function = load if targets[path].scale is None else load_quantized
        return function(weights, by_key[key], targets[path], layer)

    with ThreadPoolExecutor(READERS) as pool:
        return assemble(dict(zip(by_key, pool.map(load_key, by_key), strict=True)))


def _check_architecture(weights: Weights, model: Transformer) -> None:
    arrays = flatten_dict(transformer.parameters(model), sep=".")
    expected = {path: tuple(array.shape) for path, array in arrays.items()}
    compare(weights.name, expected, parameters(weights.architecture), "parameters")


def _read_architecture(folder: Path) -> tuple[dict[str, Any], Architecture]:
    path = folder / "config.json"
    config = read_config(path)
    return config, Architecture.from_hf(config, str(path))


def compare(
    name: str, expected: Mapping[str, Shape], found: Mapping[str, Shape], noun: str
) -> None:
    """Compare shapes by name; raises one `UserError` with the first mismatches of each kind."""
    missing = [path for path in expected if path not in found]
    extra = [path for path in found if path not in expected]
    misshapen = [
        f"{path} is {list(found[path])}, must be {list(shape)}"
        for path, shape in expected.items()
        if path in found and tuple(found[path]) != tuple(shape)
    ]
    kinds = {"missing": missing, "extra": extra, "misshapen": misshapen}
    wrong = {kind: paths for kind, paths in kinds.items() if paths}
    if wrong:
        width = 216 // len(wrong)
        texts = [f"{kind}: {listed(paths, width)}" for kind, paths in wrong.items()]
        raise UserError(f"{name}: {noun} do not match config.json: {'; '.join(texts)}")


def _refuse(name: str, reason: str | None) -> None:
    if reason is not None:
        raise UserError(f"{name}: {reason}")


def _newest_step(checkpoints: Path) -> Path | None:
    """The newest finished step: Orbax renames a step to its number once it is complete."""
    steps = [p for p in checkpoints.glob("*") if p.name.isdecimal() and p.is_dir()]
    return max(steps, key=lambda step: int(step.name), default=None)


def _download(hub_id: str) -> Path:
    """Download a model from the hub to the local cache; cached files are not fetched again."""
    import huggingface_hub

    wanted = ["config.json", ADAPTER, "*.safetensors", safetensors_io.INDEX, *AUX_FILES]
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=wanted))
    except Exception as error:  # the hub's and its HTTP client's many kinds
        reason = one_line(error)[:200]
        raise UserError(
            f"{hub_id}: no such folder, and it cannot be downloaded from the hub "
            f"({type(error).__name__}: {reason}); check the name and the network, or give a folder"
        ) from None


def _fingerprint(files: set[Path], config: dict[str, Any]) -> str:
    """Identifies a checkpoint by the names, sizes and modification times of its files."""
    facts = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(repr((sorted(facts), config)).encode()).hexdigest()
