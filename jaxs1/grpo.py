"""Reinforcement learning under a thinking budget: `python -m jaxs1.grpo --config demo_grpo`.

    questions, budgets -> roll-outs in the decoding loop -> rewards -> advantages -> train step

The budget is part of the roll-out: the controller cuts, closes and inserts Waits as in any other
decoding. Trained is what the model chose, never what the controller wrote.

    config.yaml  metrics.jsonl  samples.jsonl  held_out.jsonl  tensorboard/  checkpoints/  hf/
"""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from convert.generation_config import with_stop_tokens
from convert.weights import open_weights
from jaxs1.config import UserError, parse, run_command
from jaxs1.data.end_of_turn import end_of_turn
from jaxs1.data.model_settings import with_preset
from jaxs1.data.tokenizer import check_vocabulary, load_tokenizer
from jaxs1.decoding.controls import check_sizes
from jaxs1.decoding.loading import cache_pages, free_for_cache
from jaxs1.decoding.tokenized_thinking import tokenize_thinking
from jaxs1.devices import compute_capability
from jaxs1.model.decode_params import abstract_params
from jaxs1.model.sharding import local_bytes
from jaxs1.model.transformer import Transformer
from jaxs1.rl import held_out, report
from jaxs1.rl.config import GrpoConfig, HeldOutConfig
from jaxs1.rl.learner import Learner, Requests, RollOut
from jaxs1.rl.objective import make_scorer, policy_loss
from jaxs1.rl.policy import policy_model
from jaxs1.rl.rollout import RolloutEngine
from jaxs1.rl.sizes import Sizes, gated_ids, largest_budget, sizes_of
from jaxs1.run_files import ModelRun, export, initial_params, last_step, write_run_files
from jaxs1.storage import JsonlWriter, read_jsonl
from jaxs1.tasks.benchmarks import Questions, QuestionsConfig, load_questions
from jaxs1.training import distributed
from jaxs1.training.checkpoint import Checkpoints, quiet_orbax
from jaxs1.training.config import CheckpointConfig
from jaxs1.training.distributed import print_main
from jaxs1.training.loss import Distribution
from jaxs1.training.memory import estimate_memory, refuse_if_too_large
from jaxs1.training.metrics_logger import MetricsLogger, open_log
from jaxs1.training.optimizer import make_optimizer, make_schedule
from jaxs1.training.step import TrainState, abstract_state, init_state, make_train_step


@dataclass(frozen=True)
class Job(ModelRun):
    """Everything a run needs, read and validated before anything runs on a device.

    Args:
        config: settings of the run
        questions: questions to train on
        held_out: questions to evaluate on; None: no evaluation
        requests: makes requests of questions
        distribution: distribution that roll-outs draw from
        sizes: sizes of sequences and rows
    """

    config: GrpoConfig
    questions: Questions
    held_out: Questions | None
    requests: Requests
    distribution: Distribution
    sizes: Sizes


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    quiet_orbax()
    config = parse(GrpoConfig, argv, command="python -m jaxs1.grpo")
    with distributed.session(config.distributed):
        return grpo(config)


def grpo(config: GrpoConfig) -> int:
    """Train, save checkpoints, and export to `config.output`/hf, an adapter also to .../peft.

    Returns:
        0, or 128 + the signal's number if a signal ended the run after a checkpoint.

    Raises:
        UserError: invalid settings or questions, before the first step; a non-finite loss.
    """
    run = Path(config.output)
    start = last_step(run, config.resume)
    job = prepare(config)
    _describe(job, start)
    write_run_files(job, run)
    optimizer = make_optimizer(config.optimizer, config.steps * config.objective.updates)
    with closing(Checkpoints(run, config.checkpoint)) as checkpoints:
        state = init_state(job.model, optimizer, *initial_params(job))
        learner = _learner(job, optimizer, state)
        if start:
            state = checkpoints.restore(start, state, config)
        state, stopped = _run_steps(job, learner, state, checkpoints, run)
    if stopped:
        name = signal.Signals(stopped).name
        print_main(f"stopped by {name}; checkpoint at step {int(state.step)} of {config.steps}")
        print_main("to continue, repeat the command with --resume auto")
        return 128 + stopped
    export(job, state, run)
    return 0


def prepare(config: GrpoConfig) -> Job:
    """Read and validate weight headers, tokenizer, questions and mesh.

    Raises:
        UserError: a setting that does not fit the model, the questions or the devices.
    """
    weights = open_weights(config.model)
    tokenizer = load_tokenizer(config.tokenizer or str(weights.aux_files), weights.aux_files)
    architecture = weights.architecture
    check_vocabulary(tokenizer, config.tokenizer or config.model, architecture.vocab_size)
    questions = load_questions(config.task, config.data)
    if config.prompts > len(questions.items):
        raise UserError(
            f"prompts={config.prompts}: the task has {len(questions.items)} questions; lower it"
        )
    thinking = tokenize_thinking(config.thinking, tokenizer)
    check_sizes(thinking)
    requests = Requests(thinking.thinking, tokenizer, config.budgets.told, config.temperature)
    held = _held_out_questions(config)
    items = [*questions.items, *(held.items if held else ())]
    budget = largest_budget(config)
    prompt = max(len(requests.prompt(question.text, budget)) for question in items)
    sizes = sizes_of(config, thinking, prompt, architecture.max_position_embeddings)
    gated = gated_ids(thinking, tokenizer)
    distribution = Distribution(config.temperature, len(tokenizer), gated)
    devices = jax.devices()
    model = policy_model(config, architecture, devices, compute_capability(devices[0]))
    _check_fits(model, config, sizes.row)
    folder, end = weights.aux_files, end_of_turn(tokenizer)
    hf_config, generation = with_stop_tokens(weights.config, folder, end, tokenizer.eos_token_id)
    return Job(
        config,
        weights,
        tokenizer,
        hf_config,
        with_preset(generation, thinking.thinking.preset),
        model,
        questions,
        held,
        requests,
        distribution,
        sizes,
    )


def _held_out_questions(config: GrpoConfig) -> Questions | None:
    given = config.held_out
    if not given.every:
        return None
    data = QuestionsConfig(given.path, config.data.fields, config.data.kind, config.data.seed)
    questions = load_questions(given.task or config.task, data)
    return dataclasses.replace(questions, items=questions.items[: given.limit])


def _check_fits(model: Transformer, config: GrpoConfig, row_length: int) -> None:
    """Reject a step that cannot fit, on devices that report their memory."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None:
        return
    memory = estimate_memory(
        model,
        abstract_state(model, make_optimizer(config.optimizer, config.steps)),
        gradient_accumulation_steps=2,
        rows=config.rows,
        length=row_length,
        loss_chunk=config.compute.loss_chunk,
    )
    refuse_if_too_large(memory, limit, device.device_kind)


def _describe(job: Job, start: int) -> None:
    """Print what is about to run, including every choice made automatically."""
    config, a = job.config, job.model.architecture
    mesh = ", ".join(f"{k} {v}" for k, v in job.model.rules.mesh.shape.items())
    compute = job.model.compute
    print_main(f"model     {a.size} ({config.model})")
    print_main(
        f"devices   {jax.device_count()} x {jax.devices()[0].device_kind}: {mesh}; "
        f"attention {compute.attention}, {compute.dtype}"
    )
    print_main(f"questions {len(job.questions.items):,} of {job.questions.name}")
    print_main(
        f"steps     {config.steps:,} of {config.prompts} questions x {config.group} samples, "
        f"budgets {', '.join(map(str, config.budgets.values))}; sequences of up to "
        f"{job.sizes.context:,} tokens, packed into rows of {job.sizes.row:,}"
    )
    if start:
        print_main(f"resuming  after step {start:,}")


def _learner(job: Job, optimizer: Any, state: TrainState) -> Learner:
    config, chunk = job.config, job.config.compute.loss_chunk
    objective, model = config.objective, job.model
    limits = dataclasses.replace(config.limits, max_seq_len=job.sizes.context)
    engine = RolloutEngine(
        model,
        job.tokenizer,
        limits,
        tensor=config.tensor,
        num_pages=lambda decoder: 1 + cache_pages(decoder, limits, _free(decoder)),
    )
    loss = policy_loss(objective, job.distribution)
    needs_scores = objective.kl > 0 or objective.old == "trainer"
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))  # the step donates its own
    return Learner(
        config,
        model,
        job.questions,
        job.requests,
        engine,
        make_train_step(model, optimizer, loss_chunk=chunk, loss=loss),
        scorer=make_scorer(model, job.distribution, chunk=chunk) if needs_scores else None,
        reference=(copy(state.params), state.frozen) if objective.kl > 0 else None,
        row_length=job.sizes.row,
        longest=job.sizes.completion,
    )


def _free(decoder: Transformer) -> int:
    """Memory for keys and values: the trainer's state is on the devices, decoding's weights not."""
    return free_for_cache(decoder.rules, unloaded=local_bytes(abstract_params(decoder)))


class _Logs:
    """The files of a run that grow with its steps, without what an interrupted attempt wrote.

    Args:
        job: the run
        run: its folder
        first: step after which it continues
        stack: closes the files
    """

    def __init__(self, job: Job, run: Path, first: int, stack: ExitStack):
        config = job.config
        self.job, self.path = job, run / "held_out.jsonl"
        settings = dataclasses.asdict(config)
        logger = MetricsLogger(run, config.log, first=first, total=config.steps, settings=settings)
        self.metrics = stack.enter_context(logger)
        self.samples = stack.enter_context(open_log(run / "samples.jsonl", first))
        # a run that begins anew evaluates anew before its first step
        self.held_out: JsonlWriter = stack.enter_context(open_log(self.path, first or -1))
        self.live = report.LiveGroups()

    def write_held_out(self, step: int, points: Sequence[held_out.Point]) -> dict[str, float]:
        """Store and print an evaluation; its metrics."""
        self.held_out.write(held_out.as_row(step, points))
        rows = (row for _, row in read_jsonl(self.path, appended=True))
        before = next((held_out.points_of(r) for r in rows if r["step"] == 0 < step), None)
        print(f"held out  step {step}: {held_out.line(points, before)}", flush=True)
        return held_out.summary(points, before)

    def write_step(
        self, step: int, rollout: RollOut, values: dict[str, float], *, compiled: bool
    ) -> None:
        """Store and print a step; of its samples the first of each group before a second of any."""
        items = self.job.questions.items
        rows = [
            report.sample_row(step, group, items[group.question].text, graded[i])
            for i in range(self.job.config.group)
            for group, graded in zip(rollout.groups, rollout.graded_PG, strict=True)
        ]
        self.samples.write(*rows[: self.job.config.samples])
        self.metrics.step(step, values, compiled=compiled, shown=report.SHOWN)
        self.live.add(rollout.groups, rollout.live_P)
        if step == report.WARN_AFTER:
            for line in self.live.warnings():
                print(line, flush=True)


def _evaluate(job: Job, learner: Learner, state: TrainState) -> list[held_out.Point]:
    """Answer the held-out questions; no points if there are none."""
    questions, requests = job.held_out, job.requests
    if questions is None:
        return []
    budgets = job.config.held_out.budgets
    return learner.with_weights(
        state, lambda: held_out.evaluate(learner.engine, questions, budgets, requests.greedy)
    )


def _run_steps(
    job: Job, learner: Learner, state: TrainState, checkpoints: Checkpoints, run: Path
) -> tuple[TrainState, int]:
    """Step until the end or a signal; returns the state and the signal's number, or 0."""
    config, first = job.config, int(state.step)
    schedule = make_schedule(config.optimizer, config.steps * config.objective.updates)
    shapes: set[tuple[int, ...]] = set()
    agreed_max = distributed.AgreedMax()
    with distributed.stop_requests() as stop, ExitStack() as stack:
        logs = _Logs(job, run, first, stack) if distributed.is_main_process() else None
        if not first and (points := _evaluate(job, learner, state)) and logs:
            logs.write_held_out(0, points)
        for number in range(first, config.steps):
            start = time.monotonic()
            rollout = learner.roll_out(number, state)
            state, values, shape = learner.update(number, state, rollout)
            _check_finite(number + 1, values)
            values["learning_rate"] = float(schedule(number * config.objective.updates))
            values |= learner.seconds | {"seconds": time.monotonic() - start}
            values["tokens_per_s"] = _written(rollout) / learner.seconds["rollout_s"]
            ends = number + 1 == config.steps
            points = _evaluate(job, learner, state) if _due(number, config.held_out, ends) else []
            if logs:
                values |= logs.write_held_out(number + 1, points) if points else {}
                compiled = number == first or shape not in shapes
                logs.write_step(number + 1, rollout, values, compiled=compiled)
            shapes.add(shape)
            stopped = agreed_max(stop[0] if stop else 0)
            if _due(number, config.checkpoint, ends) or stopped:
                checkpoints.save(state, config)
            if stopped:
                return state, stopped
    return state, 0


def _due(number: int, config: HeldOutConfig | CheckpointConfig, ends: bool) -> bool:
    return ends or (config.every > 0 and (number + 1) % config.every == 0)


def _written(rollout: RollOut) -> int:
    graded = (g for group in rollout.graded_PG for g in group)
    return sum(len(g.completion.tokens) for g in graded)


def _check_finite(step: int, values: dict[str, float]) -> None:
    loss, grad_norm = (values.get(name, 0.0) for name in ("loss", "grad_norm"))
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise UserError(
            f"step {step}: loss={loss}, gradient norm={grad_norm}: must be finite; the last "
            "checkpoint is kept; lower optimizer.learning_rate or objective.clip_high"
        )


if __name__ == "__main__":
    run_command(main)
