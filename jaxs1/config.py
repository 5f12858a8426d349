"""Every field a user can set, and how YAML and the command line become dataclasses.

A recipe is a YAML file; any field can be overridden on the command line:

    python -m jaxs1.train --config configs/s1_32b.yaml --optimizer.learning_rate 2e-5

`parse` returns frozen dataclasses or raises `UserError`; `run_command` prints a `UserError` as one
line and exits with status 2. This file knows no other file of the package.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import jsonargparse
import yaml

T = TypeVar("T")


class UserError(ValueError):
    """Something the user can mend. One line: field, value, constraint, remedy."""


@dataclass(frozen=True)
class DataConfig:
    """What is trained on.

    Args:
        path: a .jsonl or .parquet file, or the id of a hub dataset (owner/name)
        split: which split of a hub dataset
        format: how a record is read; auto decides from its columns
        fields: column names that differ, e.g. '{"question": "prompt"}' reads question from prompt
        block_size: longest example [tokens]
        overlong: an example over block_size is dropped and counted, or ends the run
        limit: use only the first so many records; null for all
        rows: rows that the sequences of one micro-batch are packed into; null picks the fastest
        row_multiple: row lengths are rounded up to this [tokens], so that few shapes are compiled
    """

    path: str = ""
    split: str = "train"
    format: Literal["auto", "s1k", "s1k-1.1", "messages", "gsm8k", "text"] = "auto"
    fields: dict[str, str] = field(default_factory=dict)
    block_size: int = 32768
    overlong: Literal["drop", "error"] = "drop"
    limit: int | None = None
    rows: int | None = None
    row_multiple: int = 1024


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters move.

    Args:
        name: adamw, or muon for the matrices (adamw for the rest) when training from scratch
        learning_rate: peak learning rate
        warmup_ratio: share of all steps that warm up linearly from 0
        min_lr_ratio: learning rate at the last step, as a share of the peak (cosine in between)
        b1: decay of the first moment (muon: of the momentum is 0.95)
        b2: decay of the second moment
        eps: added to the root of the second moment
        weight_decay: decoupled weight decay; norms and biases are never decayed
        max_grad_norm: gradients are scaled down to this global norm; null for no clipping
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-5
    warmup_ratio: float = 0.05
    min_lr_ratio: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 1e-4
    max_grad_norm: float | None = 1.0


#: Linear maps of a layer, as Hugging Face names them.
LinearName = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters over frozen weights (LoRA, Hu et al. 2021): y = x W + x A B alpha / rank.

    Args:
        rank: width of A's output and B's input; 0 trains all weights instead
        alpha: numerator of the adapters' scale
        target_modules: linear maps that get an adapter
        frozen_dtype: of the weights that are not trained
    """

    rank: int = 0
    alpha: float = 32.0
    target_modules: tuple[LinearName, ...] = get_args(LinearName)
    frozen_dtype: Literal["bfloat16", "float32"] = "bfloat16"


@dataclass(frozen=True)
class MeshConfig:
    """How the work is spread over devices. The product must be the number of devices.

    Args:
        data: replicas, each with its own rows
        fsdp: devices that share parameters and optimizer state, each with its own rows; -1 takes
            what the other axes leave
        context: devices that share a row (its sequence), and parameters as well
        tensor: devices that share heads and the MLP's width
    """

    data: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class ComputeConfig:
    """How the model is computed.

    Args:
        dtype: of activations and of the matrices while they are multiplied
        param_dtype: of parameters and optimizer state
        remat: what the backward pass recomputes: nothing, all but attention, or everything
        scan_layers: compile one layer for all; false compiles each, for a few small ones on a CPU
        attention: implementation; auto takes cudnn on NVIDIA, splash on TPU, xla elsewhere
        loss_chunk: tokens per device whose logits exist at one time
    """

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    param_dtype: Literal["bfloat16", "float32"] = "float32"
    remat: Literal["none", "attention", "full"] = "attention"
    scan_layers: bool = True
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    loss_chunk: int = 2048


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept.

    Args:
        every: steps between checkpoints; 0 saves only at the end
        max_to_keep: how many of the newest checkpoints stay
    """

    every: int = 100
    max_to_keep: int = 2


@dataclass(frozen=True)
class LogConfig:
    """What is reported, beside RUN/metrics.jsonl.

    Args:
        every: steps between lines in the log
        tensorboard: write TensorBoard events to RUN/tensorboard
        wandb: Weights & Biases project; null for none (needs the package wandb)
    """

    every: int = 1
    tensorboard: bool = True
    wandb: str | None = None


@dataclass(frozen=True)
class DistributedConfig:
    """How the processes of a run find each other, and how they notice that one is gone.

    Args:
        cluster: auto looks for a SLURM step, Open MPI or GKE TPU workers and is one process where
            there are none; jax leaves it to JAX, which also asks Kubernetes and TPU metadata; none
            is one process
        coordinator: HOST:PORT of process 0, instead of cluster
        num_processes: of the run; with coordinator
        process_id: of this process, from 0; with coordinator
        heartbeat_timeout: seconds of silence after which a process counts as lost and the run ends
    """

    cluster: Literal["auto", "jax", "none"] = "auto"
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    heartbeat_timeout: int = 30


@dataclass(frozen=True)
class TrainConfig:
    """Supervised fine-tuning of a Qwen2, Qwen2.5 or Qwen3 model.

    Args:
        model: weights to start from: a Hugging Face folder, a hub id, or a checkpoint of ours;
            null starts from random weights of the given architecture
        architecture: a config.json in Hugging Face form; the config.json of `model` wins
        tokenizer: Hugging Face folder or hub id; null takes the one of `model`
        output: run directory: config, metrics, checkpoints, at the end the exported model in hf/
        batch_size: sequences per optimizer step
        gradient_accumulation_steps: micro-batches that one optimizer step is split into
        epochs: passes over the data
        steps: optimizer steps; null: as many as `epochs` needs
        loss: every target token of a step weighs the same (token), or every sequence (sequence)
        export_dtype: of the exported weights
        seed: of the order of the data and of random weights
        resume: auto goes on from the newest checkpoint in `output`; never refuses a used `output`
        data: what is trained on
        optimizer: how parameters move
        lora: train adapters instead of all weights
        mesh: how the work is spread over devices
        compute: how the model is computed
        checkpoint: what is kept
        log: what is reported
        distributed: how the processes of a run find each other
    """

    model: str | None = None
    architecture: str | None = None
    tokenizer: str | None = None
    output: str = "runs/train"
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    epochs: int = 5
    steps: int | None = None
    loss: Literal["token", "sequence"] = "token"
    export_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    seed: int = 0
    resume: Literal["auto", "never"] = "never"
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        """Refuse what no model and no machine could make sense of."""
        if not self.data.path:
            raise UserError(
                "data.path='': must name the training data; give --data.path FILE.jsonl or a hub id"
            )
        if self.model is None and self.architecture is None:
            raise UserError(
                "model=null: needs weights or an architecture; give --model DIR, "
                "or --architecture configs/models/NAME.json for random weights"
            )
        if self.model is None and self.tokenizer is None:
            raise UserError(
                "tokenizer=null: random weights bring no tokenizer; give --tokenizer DIR"
            )
        positive = {
            "batch_size": self.batch_size,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "epochs": self.epochs,
            "data.block_size": self.data.block_size,
            "data.row_multiple": self.data.row_multiple,
            "compute.loss_chunk": self.compute.loss_chunk,
            "checkpoint.max_to_keep": self.checkpoint.max_to_keep,
            "log.every": self.log.every,
            "steps": 1 if self.steps is None else self.steps,
            "data.rows": 1 if self.data.rows is None else self.data.rows,
            "data.limit": 1 if self.data.limit is None else self.data.limit,
            "optimizer.learning_rate": self.optimizer.learning_rate,
            "lora.alpha": self.lora.alpha,
            "distributed.heartbeat_timeout": self.distributed.heartbeat_timeout,
        }
        for name, value in positive.items():
            if not value > 0:
                raise UserError(f"{name}={value}: must be positive; give a value above 0")
        for name, zero, value in (
            ("checkpoint.every", "only at the end", self.checkpoint.every),
            ("lora.rank", "train all weights", self.lora.rank),
        ):
            if value < 0:
                raise UserError(f"{name}={value}: must be 0 ({zero}) or more")
        for name in ("warmup_ratio", "min_lr_ratio"):
            value = getattr(self.optimizer, name)
            if not 0 <= value <= 1:
                raise UserError(f"optimizer.{name}={value}: is a share of 1; give 0 to 1")
        self._check_lora()

    def _check_lora(self) -> None:
        targets = self.lora.target_modules
        if not targets or len(set(targets)) < len(targets):
            raise UserError(
                f"lora.target_modules={list(targets)}: must name one linear map or more, each once; "
                f"known: {', '.join(get_args(LinearName))}"
            )
        if self.lora.rank and self.model is None:
            raise UserError("model=null: adapters need weights to adapt; give --model DIR")
        if self.lora.rank and self.optimizer.name == "muon":
            raise UserError("optimizer.name=muon: is for whole matrices; adapters need adamw")


def parse(
    schema: type[T], argv: Sequence[str], *, command: str, positionals: Sequence[str] = ()
) -> T:
    """Build `schema` from `--config FILE.yaml` and overrides in `argv`.

    Args:
        schema: a dataclass whose docstring's `Args:` explain every field
        argv: command line without the program's name
        command: how the user calls it, for the help text
        positionals: fields of `schema` that are given by position

    Raises:
        UserError: one line that names the field, its value, the constraint and the remedy.
    """
    command = as_typed(command)
    parser = jsonargparse.ArgumentParser(
        prog=command,
        description=(schema.__doc__ or "").split("\n")[0],
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", action="config", help="YAML recipe; later arguments override it"
    )
    for name in positionals:
        parser.add_argument(name, type=str)
    parser.add_class_arguments(schema, skip=set(positionals))
    try:
        namespace = parser.parse_args(_with_current_names(argv))
        values = namespace.as_dict()
        values.pop("config", None)
        return _build(schema, values)
    except jsonargparse.ArgumentError as error:
        raise UserError(_explain(str(error), schema, command)) from None


#: Fields of version 0.1 -> their names now. Recipes, flags and saved settings may still use them.
RENAMED = {
    "accumulate": "gradient_accumulation_steps",
    "optimizer.final_ratio": "optimizer.min_lr_ratio",
    "optimizer.clip_norm": "optimizer.max_grad_norm",
    "lora.targets": "lora.target_modules",
    "checkpoint.keep": "checkpoint.max_to_keep",
    "distributed.lost_after": "distributed.heartbeat_timeout",
    "data.on_too_long": "data.overlong",
    "limits.max_sequences": "limits.max_num_seqs",
    "limits.kv_tokens": "limits.kv_cache_tokens",
    "limits.context": "limits.max_seq_len",
    "limits.chunk": "limits.decode_steps",
    "limits.prefill": "limits.prefill_chunk_tokens",
    "thinking.cue": "thinking.answer_prefix",
    "thinking.max_answer": "thinking.max_answer_tokens",
    "thinking.min_answer": "thinking.min_answer_tokens",
    "sweep.max_thinking": "sweep.budget",
}


def current_names(settings: dict[str, Any], group: str = "") -> dict[str, Any]:
    """Settings with the fields of `RENAMED` under their current names, and a line about each.

    Args:
        settings: nested dictionaries, or one of dotted names
        group: dotted name of the dictionary that holds them
    """
    current = {}
    for name, value in settings.items():
        old = f"{group}.{name}" if group else str(name)
        new = RENAMED.get(old, old)
        if new != old:
            print(f"note: {old} is now called {new}", file=sys.stderr)
        inner = current_names(value, old) if isinstance(value, dict) else value
        current[new.removeprefix(f"{group}.") if group else new] = inner
    return current


def _with_current_names(argv: Sequence[str]) -> list[str]:
    """The arguments, and the recipes they name, in current names."""
    current: list[str] = []
    for word in argv:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            (new,) = current_names({name[2:]: None})
            word = f"--{new}{equals}{value}"
        elif current and current[-1] == "--config":
            word = _current_recipe(word)
        current.append(_current_recipe(word) if word.startswith("--config=") else word)
    return current


def _current_recipe(argument: str) -> str:
    """A recipe's path; its content instead where that uses old names."""
    flag, path = ("--config=", argument[9:]) if argument.startswith("--config=") else ("", argument)
    try:
        recipe = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return argument  # the parser says what is wrong
    if not isinstance(recipe, dict):
        return argument
    current = current_names(recipe)
    return argument if current == recipe else flag + yaml.safe_dump(current, sort_keys=False)


def to_yaml(config: Any) -> str:
    """The configuration as YAML that `--config` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def as_typed(command: str) -> str:
    """A command's name as the user typed it: `python -m jaxs1.train`, or `jaxs1 train`."""
    program = sys.argv[0]
    if program.startswith(("jaxs1 ", "python -m jaxs1 ")):  # set by `jaxs1.__main__`
        return " ".join([program, *command.split()[3:]])
    return command


def run_command(main: Callable[[Sequence[str]], int | None]) -> None:
    """Run a command's `main(argv)`; a `UserError` becomes one line on stderr and exit status 2."""
    try:
        sys.exit(main(sys.argv[1:]) or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _build(schema: type[T], values: dict[str, Any]) -> T:
    """Nested dictionaries to nested dataclasses (jsonargparse has checked keys and types)."""
    hints = {f.name: f.default_factory for f in dataclasses.fields(schema)}  # type: ignore[arg-type]
    built = {}
    for name, value in values.items():
        group = hints[name]
        if dataclasses.is_dataclass(group) and isinstance(group, type):
            value = _build(group, value)
        built[name] = value
    return schema(**built)


def _field_names(schema: Any, prefix: str = "") -> list[str]:
    names = []
    for f in dataclasses.fields(schema):
        names.append(prefix + f.name)
        if dataclasses.is_dataclass(f.default_factory):
            names += _field_names(f.default_factory, f"{prefix}{f.name}.")
    return names


def _explain(message: str, schema: type, command: str) -> str:
    """One line from jsonargparse's message, with the nearest known field where one is unknown."""
    message = one_line(message)
    unknown = None
    if match := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        unknown = f"{match[1]}.{match[2]}"
    elif match := re.search(
        r"(?:[Oo]ption '|[Uu]nrecognized arguments: --)([\w.]+)(?:' is not accepted)?", message
    ):
        unknown = match[1]
    if unknown:
        group = unknown.rpartition(".")[0]
        known = _field_names(schema)
        siblings = [name for name in known if group and name.startswith(f"{group}.")]
        near = difflib.get_close_matches(unknown, siblings or known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{unknown}: no such field; {hint}see {command} --help"
    if match := re.search(r'Parser key "([\w.]+)": (.*)', message):
        wanted = re.sub(r"<class '(\w+)'>", r"\1", match[2]).replace("tuple[str, ...]", "tuple")
        wanted = wanted.replace("tuple", "a list")
        wanted = re.sub(r"typing\.Literal\[(.*?)\]", lambda m: m[1].replace("'", ""), wanted)
        if union := re.search(r"Subtypes: \[(.*)\] Errors.*Given value: (.*)", wanted):
            kinds = union[1].replace("NoneType", "null").replace(", ", " or ")
            return f"{match[1]}={union[2]}: must be {kinds}; see {command} --help"
        if got := re.search(r"Expected an? (.*?)\.? Got value: (.*)", wanted):
            return f"{match[1]}={got[2]}: must be {got[1]}; see {command} --help"
        return f"{match[1]}: {wanted}; see {command} --help"
    return f"{message}; see {command} --help"


def one_line(message: object) -> str:
    """A message without line breaks, as a `UserError` needs it."""
    return re.sub(r"\s+", " ", str(message)).strip()
