"""Supervised fine-tuning: `python -m jaxs1.train --config configs/s1_32b.yaml`.

records -> chat text -> token ids -> packed batches -> train step -> checkpoint -> export.
All validation happens before anything runs on a device.
"""

from __future__ import annotations

import dataclasses
import math
import signal
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax

from convert.generation_config import with_stop_tokens
from convert.weights import open_weights
from jaxs1.config import UserError, find_recipe, parse, run_command
from jaxs1.data import chat
from jaxs1.data.batches import Batches, BatchStats, fit_to_block, summary
from jaxs1.data.end_of_turn import end_of_turn
from jaxs1.data.model_settings import with_preset
from jaxs1.data.records import load_records
from jaxs1.data.tokenizer import check_vocabulary, load_tokenizer, padding_id, vocabulary_size
from jaxs1.devices import compute_capability, peak_flops
from jaxs1.model import ops, transformer
from jaxs1.model.architecture import Architecture, read_config
from jaxs1.model.sharding import ShardingRules, check_divisible, make_sharding_rules
from jaxs1.run_files import (
    ModelRun,
    export,
    initial_params,
    last_step,
    write_run_files,
)
from jaxs1.training import distributed
from jaxs1.training.checkpoint import Checkpoints, quiet_orbax
from jaxs1.training.config import TrainConfig
from jaxs1.training.distributed import print_main
from jaxs1.training.memory import check_fits
from jaxs1.training.metrics_logger import MetricsLogger
from jaxs1.training.optimizer import make_optimizer, make_schedule
from jaxs1.training.step import (
    StepMetrics,
    TrainState,
    TrainStep,
    init_state,
    make_train_step,
    put_batch,
)


@dataclass(frozen=True)
class Job(ModelRun):
    """Everything a run needs, read and validated before anything runs on a device.

    Args:
        config: settings of the run
        batches: training data
        steps: number of optimizer steps
    """

    config: TrainConfig
    batches: Batches
    steps: int


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    quiet_orbax()
    config = parse(TrainConfig, argv, command="python -m jaxs1.train")
    with distributed.session(config.distributed):
        return train(config)


def train(config: TrainConfig) -> int:
    """Train, save checkpoints, and export to `config.output`/hf, an adapter also to .../peft.

    Returns:
        0, or 128 + the signal's number if a signal ended the run after a checkpoint.

    Raises:
        UserError: invalid settings or data, before the first step; a non-finite loss.
    """
    run = Path(config.output)
    start = last_step(run, config.resume)
    job = prepare(config)
    _describe(job, start)
    write_run_files(job, run)
    optimizer = make_optimizer(config.optimizer, job.steps)
    with closing(Checkpoints(run, config.checkpoint)) as checkpoints:
        state = init_state(job.model, optimizer, *initial_params(job))
        if start:
            state = checkpoints.restore(start, state, config)
        step = make_train_step(job.model, optimizer, loss_chunk=config.compute.loss_chunk)
        state, stopped = _run_steps(job, step, state, checkpoints, run)
    if stopped:
        name = signal.Signals(stopped).name
        print_main(f"stopped by {name}; checkpoint at step {int(state.step)} of {job.steps}")
        print_main("to continue, repeat the command with --resume auto")
        return 128 + stopped
    export(job, state, run)
    return 0


def prepare(config: TrainConfig) -> Job:
    """Read and validate weight headers, tokenizer, data and mesh.

    Raises:
        UserError: a setting that does not fit the model, the data or the devices.
    """
    weights = open_weights(config.model) if config.model else None
    tokenizer = load_tokenizer(config.tokenizer or str(weights and weights.aux_files))
    if weights is not None:
        hf_config, source = weights.config, str(config.model)
    else:
        source = str(find_recipe(str(config.architecture), setting="architecture"))
        hf_config = read_config(source)
        # for random weights the vocabulary size may come from the tokenizer
        hf_config.setdefault("vocab_size", -(-vocabulary_size(tokenizer) // 64) * 64)
    architecture = Architecture.from_hf(hf_config, source)
    check_vocabulary(tokenizer, config.tokenizer or source, architecture.vocab_size)
    if config.data.block_size > architecture.max_position_embeddings:
        raise UserError(
            f"data.block_size={config.data.block_size}: must be at most the model's "
            f"max_position_embeddings={architecture.max_position_embeddings}; lower it"
        )
    rules = make_sharding_rules(config.mesh)
    check_divisible(architecture, rules)
    _check_batch(config, rules)
    batches, end, preset = _read_data(config, tokenizer, architecture, rules)
    device = jax.devices()[0]
    impl: Any = ops.resolve_attention(
        config.compute.attention,
        device.platform,
        config.compute.dtype,
        compute_capability(device),
    )
    compute = dataclasses.replace(config.compute, attention=impl)
    model = transformer.abstract(
        architecture, compute, rules, max_segments=config.batch_size, lora=config.lora
    )
    steps = config.steps or config.epochs * batches.steps_per_epoch
    check_fits(model, config, batches, steps, jax.local_devices()[0])
    folder = weights.aux_files if weights is not None else None
    eos = tokenizer.eos_token_id
    hf_config, generation = with_stop_tokens(hf_config, folder, end, eos)
    generation = with_preset(generation, preset)
    return Job(config, weights, tokenizer, hf_config, generation, model, batches, steps)


def _check_batch(config: TrainConfig, rules: ShardingRules) -> None:
    row_shards, context = rules.size("rows"), rules.size("sequence")
    rows = row_shards * config.gradient_accumulation_steps
    if config.batch_size < rows:
        raise UserError(
            f"batch_size={config.batch_size}: must be at least mesh.data x mesh.fsdp x "
            f"mesh.expert x gradient_accumulation_steps={rows}, one row per device; raise it or "
            "use mesh.context"
        )
    if config.data.row_multiple % context:
        raise UserError(
            f"data.row_multiple={config.data.row_multiple}: must be a multiple of mesh.context="
            f"{context}, whose devices share a row"
        )


def _read_data(
    config: TrainConfig, tokenizer: Any, architecture: Architecture, rules: ShardingRules
) -> tuple[Batches, int | None, str | None]:
    """The training data, the token with which its answers or texts end, and its delimiters."""
    kind, records = load_records(config.data)
    examples = chat.encode(records, tokenizer, config.data.preset)
    kept, dropped = fit_to_block(examples, config.data.block_size, config.data.overlong)
    print_main("\n".join(summary(kind, kept, dropped)))
    a = architecture
    matrices = a.train_flops(1, 0) / 6
    end = end_of_turn(tokenizer) if records[0].messages else int(examples[0].tokens[-1])
    batches = Batches(
        kept,
        config.data,
        batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        loss=config.loss,
        seed=config.seed,
        num_row_shards=rules.size("rows"),
        attention=2 * a.num_layers * a.num_heads * a.head_dim / matrices,
        padding_id=padding_id(tokenizer),
    )
    return batches, end, chat.preset_of(records, tokenizer, config.data.preset)


def _describe(job: Job, start: int) -> None:
    """Print what is about to run, including every choice made automatically."""
    config, a, b = job.config, job.model.architecture, job.batches
    mesh = ", ".join(f"{k} {v}" for k, v in job.model.rules.mesh.shape.items())
    device = jax.devices()[0].device_kind
    origin = config.model or f"random weights, {config.architecture}"
    c = job.model.compute
    print_main(f"model     {a.size} ({origin})")
    if config.lora.rank:
        adapters = jax.tree.leaves(transformer.parameters(job.model, transformer.Adapter))
        count = sum(x.size for x in adapters)
        print_main(
            f"adapters  {count:,} parameters, rank {config.lora.rank}; the model's are frozen"
        )
    if jax.process_count() > 1:
        print_main(f"processes {jax.process_count()}, each with {jax.local_device_count()} devices")
    print_main(
        f"devices   {jax.device_count()} x {device}: {mesh}; attention {c.attention}, {c.dtype}"
    )
    packed = f"{config.gradient_accumulation_steps} x {b.rows} rows"
    print_main(f"steps     {job.steps:,} of {config.batch_size} sequences packed into {packed}")
    if start:
        print_main(f"resuming  after step {start:,}")


def _run_steps(
    job: Job, train_step: TrainStep, state: TrainState, checkpoints: Checkpoints, run: Path
) -> tuple[TrainState, int]:
    """Step until the end or a signal; returns the state and the signal's number, or 0.

    A step's metrics are read after the next step was dispatched, so devices never wait for the
    host. Before a checkpoint they are read first: a non-finite state is never saved.
    """
    config, first = job.config, int(state.step)
    schedule = make_schedule(config.optimizer, job.steps)
    settings = dataclasses.asdict(config)
    shapes: set[tuple[int, ...]] = set()
    pending: tuple[int, StepMetrics, BatchStats, bool] | None = None
    agreed_max = distributed.AgreedMax()
    logger = (
        MetricsLogger(run, config.log, first=first, total=job.steps, settings=settings)
        if distributed.is_main_process()
        else None
    )
    with distributed.stop_requests() as stop, logger or nullcontext():
        for number in range(first, job.steps):
            batch, stats = job.batches.batch(number)
            compiled = batch.tokens.shape not in shapes
            shapes.add(batch.tokens.shape)
            state, metrics = train_step(state, put_batch(batch, job.model.rules))
            if pending:
                _log(job, logger, schedule, *pending)
            pending = (number + 1, metrics, stats, compiled)
            every = config.checkpoint.every
            due = bool(every) and (number + 1) % every == 0
            stopped = agreed_max(stop[0] if stop else 0)
            if due or stopped or number + 1 == job.steps:
                _log(job, logger, schedule, *pending)
                pending = None
                checkpoints.save(state, config)
            if stopped:
                return state, stopped
    return state, 0


def _log(
    job: Job,
    logger: MetricsLogger | None,
    schedule: optax.Schedule,
    step: int,
    metrics: StepMetrics,
    stats: BatchStats,
    compiled: bool,
) -> None:
    """Log a finished step; raises `UserError` if its loss or gradient is not finite."""
    loss, grad_norm = float(metrics.loss), float(metrics.grad_norm)
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise UserError(
            f"step {step}: loss={loss}, gradient norm={grad_norm}: must be finite; the batch held "
            f"examples {', '.join(map(str, stats.examples))}; the last checkpoint is kept; lower "
            "optimizer.learning_rate or inspect these examples"
        )
    if logger is None:
        return
    seconds = logger.lap()
    values = {
        "loss": loss,
        "grad_norm": grad_norm,
        "learning_rate": float(schedule(step - 1)),
        "tokens_per_s": stats.tokens / seconds,
        "fill": stats.tokens / stats.padded_tokens,
        "epoch": step / job.batches.steps_per_epoch,
        **{name: float(value) for name, value in metrics.tokens.sums.items()},
    }
    if peak := peak_flops(jax.devices()[0].device_kind):
        flops = job.model.architecture.train_flops(stats.tokens, stats.attention_pairs)
        values["mfu"] = flops / seconds / (peak * jax.device_count())
    logger.step(step, values, compiled=compiled)


if __name__ == "__main__":
    run_command(main)
