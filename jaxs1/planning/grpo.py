"""Reinforcement learning compiled ahead of time: the memory of its roll-out and of its step, apart.

held all the time   parameters, moments, frozen weights, the reference of a KL divergence
roll-out            + decoding's weights, then + keys and values; programs: convert, prefill,
                    decode steps
step                + the batch; programs: scorer where the objective needs one, train step
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax

from jaxs1.config import UserError
from jaxs1.decoding.buckets import bucket, size_for
from jaxs1.decoding.decode_loop import CompiledFunctions
from jaxs1.decoding.decode_state import sampling_flags
from jaxs1.decoding.loading import CACHE_SHARE, DEFAULT_CACHE, cache_pages
from jaxs1.decoding.page_allocator import pages_for
from jaxs1.decoding.params import SamplingParams
from jaxs1.model.architecture import Architecture
from jaxs1.model.decode_params import abstract_params
from jaxs1.model.kv_cache import PAGE
from jaxs1.model.sharding import local_bytes
from jaxs1.model.transformer import Transformer
from jaxs1.planning.compile import TrainProgram, abstract_batch, compile_program, compile_step
from jaxs1.planning.decode import abstract_cache, lower_steps
from jaxs1.planning.targets import Target
from jaxs1.planning.topology import tracing_for
from jaxs1.rl.batches import PolicyBatch, TokenColumns, plan_rows
from jaxs1.rl.config import GrpoConfig
from jaxs1.rl.objective import make_scorer, policy_loss
from jaxs1.rl.policy import policy_model
from jaxs1.rl.rollout import decoding_model, few_programs
from jaxs1.rl.sizes import ROW_MULTIPLE
from jaxs1.rl.weights import make_converter
from jaxs1.training.loss import Distribution
from jaxs1.training.optimizer import make_optimizer
from jaxs1.training.step import abstract_state


@dataclass(frozen=True)
class PlannedGrpo:
    """A recipe and the devices that it is planned for.

    Args:
        config: the recipe
        target: accelerators to plan for
        model: abstract, as trained, with sharding rules over the target's devices
        decoder: abstract, as decoded, on the devices of one copy
        row: length of a row [tokens]
        micro_batches: of a step whose sequences are all as long as possible
    """

    config: GrpoConfig
    target: Target
    model: Transformer
    decoder: Transformer
    row: int
    micro_batches: int

    @property
    def state(self) -> Any:
        """Shapes and shardings of the training state."""
        return abstract_state(self.model, self.optimizer)

    @property
    def optimizer(self) -> Any:
        """The optimizer of training."""
        return make_optimizer(self.config.optimizer, self.config.steps)

    @property
    def reference(self) -> int:
        """Bytes on a device of the initial model's parameters, if they are kept."""
        return local_bytes(self.state.params) if self.config.objective.kl > 0 else 0

    @property
    def held(self) -> int:
        """Bytes on a device that roll-outs and steps both find there."""
        state = self.state
        return local_bytes((state.params, state.opt_state, state.frozen)) + self.reference

    @property
    def weights(self) -> int:
        """Bytes on a device of decoding's weights, which are apart from the trainer's."""
        return local_bytes(abstract_params(self.decoder))

    @property
    def cache_pages(self) -> int:
        """Pages of the cache of one copy, without page 0, as the engine would allocate them."""
        left = self.target.available - self.held - self.weights
        devices = self.decoder.rules.mesh.size
        free = int(CACHE_SHARE * left) * devices if math.isfinite(left) else DEFAULT_CACHE
        return cache_pages(self.decoder, self.config.limits, free)


@dataclass(frozen=True)
class GrpoPrograms:
    """What the compiler reports, on one device; sizes in bytes.

    Args:
        held: parameters, moments, frozen weights and reference
        reference: the initial model's parameters, part of `held`
        weights: decoding's weights
        cache: keys and values
        cache_tokens: tokens that they hold, of all devices of a copy together
        converting: temporaries while weights are cast and divided, before there is a cache
        prefilling: temporaries of the largest batch of prompts
        decoding: temporaries of the decode steps of a full batch
        scoring: batch and temporaries of the scorer; 0 without one
        step: the train step; its parameters include frozen ones
    """

    held: float
    reference: float
    weights: float
    cache: float
    cache_tokens: int
    converting: float
    prefilling: float
    decoding: float
    scoring: float
    step: TrainProgram

    @property
    def rollout_peak(self) -> float:
        """Most bytes in use while weights are converted and while a roll-out runs."""
        running = self.cache + max(self.prefilling, self.decoding)
        return self.held + self.weights + max(self.converting, running)

    @property
    def step_peak(self) -> float:
        """Most bytes in use in the scorer and in the train step; roll-outs have released theirs."""
        return max(self.held + self.scoring, self.reference + self.step.peak)

    @property
    def peak(self) -> float:
        """Bytes that a device needs."""
        return max(self.rollout_peak, self.step_peak)

    def fits(self, available: float) -> bool:
        """Whether all programs fit into the memory of a device [bytes]."""
        return self.step.refusal is None and self.peak <= available


def plan_grpo(
    config: GrpoConfig, a: Architecture, target: Target, devices: list[jax.Device]
) -> PlannedGrpo:
    """Plan a recipe of reinforcement learning for a target.

    Args:
        config: the recipe
        a: shapes of the model
        target: accelerators to plan for
        devices: compile-only devices of the target

    Raises:
        UserError: the mesh, the batch or the length of sequences does not fit.
    """
    context = config.limits.max_seq_len
    if context is None:
        raise UserError(
            "limits.max_seq_len=null: a plan reads no prompts, so it needs the length of the "
            "longest sequence, prompt included; give e.g. --limits.max_seq_len 10240"
        )
    row = config.row_length or -(-context // ROW_MULTIPLE) * ROW_MULTIPLE
    if min(row, a.max_position_embeddings) < context:
        raise UserError(
            f"limits.max_seq_len={context}: must be at most row_length={row} and the model's "
            f"context={a.max_position_embeddings}; lower it or raise row_length"
        )
    major, minor = target.accelerator.capability
    model = policy_model(config, a, devices, 10 * major + minor)
    lengths = [context] * (config.prompts * config.group)
    rows = plan_rows(lengths, rows=config.rows, row_length=row)
    decoder = decoding_model(model, devices[: config.tensor], config.tensor)
    return PlannedGrpo(config, target, model, decoder, row, len(rows) // config.rows)


def compile_grpo(run: PlannedGrpo) -> GrpoPrograms:
    """Compile all programs of a step; takes minutes for large models."""
    model, decoder = run.model, run.decoder
    pages = 1 + run.cache_pages
    cache = abstract_cache(decoder, pages)
    return GrpoPrograms(
        held=run.held,
        reference=run.reference,
        weights=run.weights,
        cache=local_bytes(cache),
        cache_tokens=(pages - 1) * PAGE,
        converting=_temporaries(run, _lower_converter(run)),
        **_rollout_programs(run, cache),
        scoring=_scoring(run),
        step=compile_step(
            model,
            run.optimizer,
            run.target,
            gradient_accumulation_steps=run.micro_batches,
            rows=run.config.rows,
            length=run.row,
            loss_chunk=run.config.compute.loss_chunk,
            kinds=_batch_kinds(run.config),
            loss=policy_loss(run.config.objective, _distribution(run)),
        ),
    )


def _rollout_programs(run: PlannedGrpo, cache: Any) -> dict[str, float]:
    """Temporaries of prefill and decode steps of the largest batches."""
    limits, decoder, config = run.config.limits, run.decoder, run.config
    assert limits.max_seq_len is not None
    params = abstract_params(decoder)
    functions = CompiledFunctions(decoder, "xla", limits.decode_steps)
    longest = bucket(pages_for(limits.max_seq_len))
    buckets = few_programs(limits, longest)
    needed = sampling_flags([SamplingParams(temperature=config.temperature)], logprobs=True)
    steps = lower_steps(
        functions,
        params,
        cache,
        sequences=limits.max_num_seqs,
        pages=longest,
        flags=buckets.flags_for(needed),
    )
    after = config.budgets.largest + config.thinking.max_answer_tokens
    prompt = max(1, limits.max_seq_len - after)
    width = size_for(buckets.widths, prompt)
    rows = size_for(buckets.rows, max(1, limits.prefill_chunk_tokens // width))
    replicated = decoder.rules.sharding(())
    tokens, table = (
        jax.ShapeDtypeStruct(shape, "int32", sharding=replicated)
        for shape in ((rows, width), (rows, size_for(buckets.pages, pages_for(prompt))))
    )
    prefill: Any = functions.prefill
    return {
        "decoding": _temporaries(run, steps),
        "prefilling": _temporaries(run, prefill.lower(params, cache, tokens, tokens, table)),
    }


def _lower_converter(run: PlannedGrpo) -> Any:
    devices = list(run.model.rules.mesh.devices.flat)
    convert: Any = make_converter(run.model, decoding_model(run.model, devices, run.config.tensor))
    return convert.lower(run.state.params, run.state.frozen)


def _scoring(run: PlannedGrpo) -> float:
    objective, config = run.config.objective, run.config
    if not (objective.kl > 0 or objective.old == "trainer"):
        return 0.0
    kinds = _batch_kinds(config)
    kinds = kinds._replace(columns=kinds.columns._replace(old=None, reference=None))
    batch = abstract_batch(kinds, (run.micro_batches, config.rows, run.row), run.model)
    chunk = config.compute.loss_chunk
    scorer: Any = make_scorer(run.model, _distribution(run), chunk=chunk)
    with tracing_for(run.target):
        lowered = scorer.lower(run.state.params, run.state.frozen, batch)
    return local_bytes(batch) + _temporaries(run, lowered)


def _batch_kinds(config: GrpoConfig) -> PolicyBatch:
    """Dtypes in the place of a batch's arrays."""
    objective = config.objective
    columns = TokenColumns(
        "float32",
        "float32",
        "float32",
        old="float32" if objective.old == "trainer" else None,
        reference="float32" if objective.kl > 0 else None,
    )
    return PolicyBatch("int32", "int32", "bool", columns, "int32", "int32")


def _distribution(run: PlannedGrpo) -> Distribution:
    """Without a tokenizer: its size and the ends of thinking change no shape."""
    return Distribution(run.config.temperature, run.model.architecture.vocab_size, (0,))


def _temporaries(run: PlannedGrpo, lowered: Any) -> float:
    """Bytes that a program needs besides its arguments and results."""
    program = compile_program(lowered, run.target.accelerator.platform)
    return float(program.executable.memory_analysis().temp_size_in_bytes)
