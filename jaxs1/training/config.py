"""Settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from jaxs1.config import UserError
from jaxs1.data.config import DataConfig
from jaxs1.model.config import ComputeConfig, LinearName, LoraConfig, MeshConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer.

    Args:
        name: Optimizer; muon, for training from scratch, updates matrices and uses adamw elsewhere
        learning_rate: Peak learning rate
        warmup_ratio: Fraction of the steps for linear warmup from 0
        min_lr_ratio: Learning rate at the last step as a fraction of the peak, after cosine decay
        b1: Decay rate of the first moment; muon's momentum is 0.95
        b2: Decay rate of the second moment
        eps: Constant added to the root of the second moment
        weight_decay: Decoupled weight decay; norms and biases are not decayed
        max_grad_norm: Global norm to which gradients are clipped; null disables clipping
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


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints.

    Args:
        every: Steps between checkpoints; 0 saves only at the end
        max_to_keep: Number of checkpoints to keep, the newest ones
    """

    every: int = 100
    max_to_keep: int = 2


@dataclass(frozen=True)
class LogConfig:
    """Logging, in addition to OUTPUT/metrics.jsonl.

    Args:
        every: Steps between lines in the terminal
        tensorboard: Write TensorBoard events to OUTPUT/tensorboard
        wandb: Weights & Biases project (requires the package wandb); null disables it
    """

    every: int = 1
    tensorboard: bool = True
    wandb: str | None = None


@dataclass(frozen=True)
class DistributedConfig:
    """Multi-process training: how processes find each other and detect a lost one.

    Args:
        cluster: Cluster detection; auto recognises a SLURM step, Open MPI and GKE TPU workers; jax
            leaves it to JAX, which also queries Kubernetes and TPU metadata; none disables it
        coordinator: HOST:PORT of process 0, instead of cluster detection
        num_processes: Number of processes; with coordinator
        process_id: Number of this process, from 0; with coordinator
        heartbeat_timeout: Seconds of silence after which a process counts as lost and the run ends
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
        model: Initial weights: Hugging Face folder, hub id or checkpoint; null initialises the
            given architecture randomly
        architecture: Model shapes: config.json in Hugging Face form, or a name such as qwen2.5-7b;
            a config.json in the folder `model` takes precedence
        tokenizer: Hugging Face folder or hub id of the tokenizer; null uses that of `model`
        output: Run directory for settings, metrics, checkpoints and the exported model in hf/
        batch_size: Sequences per optimizer step
        gradient_accumulation_steps: Micro-batches per optimizer step
        epochs: Passes over the data
        steps: Optimizer steps; null derives them from `epochs`
        loss: Weighting of the loss within a step: equal for every target token, or every sequence
        export_dtype: Data type of the exported weights
        seed: Random seed for the order of the data and for random weights
        resume: Treatment of an existing run in `output`: auto continues from its newest checkpoint,
            never refuses to start
        data: Training data
        optimizer: Optimizer
        lora: LoRA adapters
        mesh: Device mesh
        compute: Model computation
        checkpoint: Checkpoints
        log: Logging
        distributed: Multi-process training
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
        """Check everything that depends on neither the model nor the devices."""
        self._check_sources()
        self._check_numbers()
        self._check_lora()

    def _check_sources(self) -> None:
        if not self.data.path:
            raise UserError(
                "data.path='': must name the training data; give --data.path FILE.jsonl or a hub id"
            )
        if self.model is None and self.architecture is None:
            raise UserError(
                "model=null: needs weights or an architecture; give --model DIR, "
                "or --architecture NAME for random weights"
            )
        if self.model is None and self.tokenizer is None:
            raise UserError(
                "tokenizer=null: random weights have no tokenizer; give --tokenizer DIR"
            )

    def _check_numbers(self) -> None:
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
                raise UserError(f"optimizer.{name}={value}: is a fraction; give 0 to 1")

    def _check_lora(self) -> None:
        targets = self.lora.target_modules
        if not targets or len(set(targets)) < len(targets):
            raise UserError(
                f"lora.target_modules={list(targets)}: must name at least one linear map, each "
                f"once; known: {', '.join(get_args(LinearName))}"
            )
        if self.lora.rank and self.model is None:
            raise UserError("model=null: adapters need weights to adapt; give --model DIR")
        if self.lora.rank and self.optimizer.name == "muon":
            raise UserError("optimizer.name=muon: cannot train LoRA adapters; use adamw")
