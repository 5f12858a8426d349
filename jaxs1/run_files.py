"""What all training commands share: where a run begins, the files of its folder, its exports."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from flax.traverse_util import flatten_dict

from convert.adapter import CONFIG as ADAPTER_CONFIG
from convert.adapter import Adapter, MergedWeights, peft_config
from convert.in_memory import InMemoryWeights, on_host
from convert.interface import Weights
from convert.to_hf import to_hf
from convert.transfer import copy_aux_files
from convert.weights import load_params
from jaxs1.config import UserError, to_yaml
from jaxs1.data.model_settings import GENERATION_CONFIG
from jaxs1.model import transformer
from jaxs1.model.transformer import Transformer
from jaxs1.storage import check_output, explained, write_text
from jaxs1.training import distributed
from jaxs1.training.checkpoint import latest_step
from jaxs1.training.distributed import print_main
from jaxs1.training.step import TrainState


@dataclass(frozen=True)
class ModelRun:
    """A run that trains a model.

    Args:
        config: settings of the run: model, tokenizer, seed, lora, export_dtype, and its own
        weights: initial weights; None if they are random
        tokenizer: Hugging Face tokenizer
        hf_config: config.json of the export, with the tokens at which it stops
        generation_config: generation_config.json of the export
        model: abstract, without parameters
    """

    config: Any
    weights: Weights | None
    tokenizer: Any
    hf_config: dict[str, Any]
    generation_config: dict[str, Any]
    model: Transformer


def last_step(run: Path, resume: str) -> int:
    """The step of the run's newest checkpoint, after which it continues; 0 if it is new.

    Raises:
        UserError: there is a run and `resume` is never, or the folder cannot be written.
    """
    start = distributed.broadcast_from_main(latest_step(run))
    if start and resume == "never":
        raise UserError(
            f"output={run}: already holds a run, up to step {start}; continue it with "
            "--resume auto, or give another --output"
        )
    if distributed.is_main_process():
        check_output(run, folder=True)
    return start


def initial_params(job: ModelRun) -> tuple[Any, Any]:
    """Trained and frozen parameters, on their devices.

    Weights are loaded, or random from the recipe's seed if there are none; adapters are always
    random.
    """
    model, kind = job.model, transformer.trained(job.model)

    def random() -> Any:
        rngs, lora = nnx.Rngs(job.config.seed), job.config.lora
        fresh = Transformer(model.architecture, model.compute, model.rules, rngs=rngs, lora=lora)
        return transformer.parameters(fresh, kind)

    if job.weights is not None and kind is nnx.Param:
        return load_params(job.weights, model), None
    frozen = load_params(job.weights, model) if job.weights is not None else None
    return jax.jit(random, out_shardings=transformer.shardings(model, kind))(), frozen


def write_run_files(job: ModelRun, run: Path) -> None:
    """The main process writes config.yaml, and to model/ a Hugging Face folder without weights.

    A run that trains adapters also gets PEFT's adapter_config.json, which names the base weights.
    """
    if distributed.is_main_process():
        with explained(run, setting="output"):
            _write_files(job, run)


def _write_files(job: ModelRun, run: Path) -> None:
    folder = run / "model"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(run / "config.yaml", to_yaml(job.config))
    if job.weights is not None and job.weights.aux_files is not None:
        copy_aux_files(job.weights.aux_files, folder)
    if job.config.tokenizer is not None:
        if Path(job.config.tokenizer).is_dir():
            copy_aux_files(Path(job.config.tokenizer), folder)
        else:
            job.tokenizer.save_pretrained(folder)
    write_text(folder / "config.json", json.dumps(job.hf_config, indent=2) + "\n")
    write_text(folder / GENERATION_CONFIG, json.dumps(job.generation_config, indent=2) + "\n")
    if job.config.lora.rank:
        write_text(folder / ADAPTER_CONFIG, json.dumps(_peft_config(job), indent=2) + "\n")


def export(job: ModelRun, state: TrainState, run: Path) -> None:
    """Write RUN/hf, of adapters also RUN/peft; returns in all processes once it is complete."""
    if state.frozen is None:
        _export_weights(job, state.params, run)
    else:
        _export_adapter(job, state.params, run)
    distributed.broadcast_from_main(0)  # no process leaves before the export is complete


def _export_weights(job: ModelRun, params: Any, run: Path) -> None:
    """Write RUN/hf. All processes take part; the main one writes."""
    folder = run / "hf"
    if not distributed.broadcast_from_main(folder.exists()):
        live = InMemoryWeights(params, job.hf_config, run / "model")
        if distributed.is_main_process():
            to_hf(live, folder, job.config.export_dtype)
        else:
            live.take_part()
    print_main(f"exported to {folder}: transformers' from_pretrained loads it")


def _export_adapter(job: ModelRun, params: Any, run: Path) -> None:
    """Write the adapter to RUN/peft and, merged into its base weights, to RUN/hf."""
    folder, merged = run / "peft", run / "hf"
    arrays = {path: on_host(x) for path, x in flatten_dict(params, sep=".").items()}
    if not distributed.is_main_process():
        return
    assert job.weights is not None  # settings require `model` for adapters
    adapter = Adapter.from_arrays(_peft_config(job), arrays)
    if not folder.exists():
        adapter.write(folder)
    if not merged.exists():
        weights = MergedWeights(job.weights, adapter, run / "model", job.hf_config)
        to_hf(weights, merged, job.config.export_dtype)
    print_main(f"exported to {folder}: PEFT's PeftModel.from_pretrained loads it")
    print_main(f"      and to {merged}, merged: transformers' from_pretrained loads it")


def _peft_config(job: ModelRun) -> dict[str, Any]:
    return peft_config(job.config.lora, str(job.config.model))
