"""One step: roll out, grade, update. Step n is a function of the seed, n and the weights."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxs1.data.tokenizer import padding_id
from jaxs1.decoding.params import Request, SamplingParams, ThinkingParams
from jaxs1.decoding.prompt import prompt_ids
from jaxs1.model.transformer import Transformer
from jaxs1.rl.advantages import advantages
from jaxs1.rl.batches import PolicyBatch, Trajectory, pack, sequence_weights, trajectory
from jaxs1.rl.config import GrpoConfig
from jaxs1.rl.objective import Scorer
from jaxs1.rl.plan import Group, plan_groups, update_order
from jaxs1.rl.report import rollout_metrics, token_metrics
from jaxs1.rl.rewards import Graded, grade
from jaxs1.rl.rollout import RolloutEngine
from jaxs1.tasks.benchmarks import Questions
from jaxs1.training import distributed
from jaxs1.training.step import StepMetrics, TrainState, TrainStep, put_batch, put_scalar


class RollOut(NamedTuple):
    """Graded completions of a step. Letters: P groups, G samples of a group.

    Args:
        groups: what was planned
        graded_PG: completions with rewards
        advantage_PG: advantages, float64
        live_P: which groups have different rewards
    """

    groups: list[Group]
    graded_PG: list[list[Graded]]
    advantage_PG: np.ndarray
    live_P: np.ndarray


class Requests:
    """Questions as requests.

    Args:
        thinking: thinking parameters, except for the budget
        tokenizer: tokenizer of the model
        told: sentence with {value} that tells the budget; None: none
        temperature: sampling temperature of roll-outs
    """

    def __init__(
        self, thinking: ThinkingParams, tokenizer: Any, told: str | None, temperature: float
    ):
        self.thinking, self.tokenizer = thinking, tokenizer
        self.told, self.temperature = told, temperature

    def prompt(self, text: str, budget: int) -> list[int]:
        """Ids of a question, with the budget if the model is told."""
        if self.told is not None:
            text = f"{text}\n\n{self.told.format(value=budget)}"
        return prompt_ids([{"role": "user", "content": text}], self.thinking, self.tokenizer)

    def greedy(self, text: str, budget: int) -> Request:
        """The request of an evaluation."""
        thinking = dataclasses.replace(self.thinking, max=budget)
        return Request(self.prompt(text, budget), thinking)

    def sampled(self, text: str, budget: int, n: int, seed: int) -> Request:
        """The request of a group."""
        sampling = SamplingParams(temperature=self.temperature)
        return dataclasses.replace(
            self.greedy(text, budget), sampling=sampling, n=n, seed=seed, logprobs=True
        )


class Learner:
    """What a step needs besides the state, and what it does.

    Args:
        config: settings of the run
        model: abstract
        questions: questions to train on
        requests: makes their requests
        engine: engine of the roll-outs
        train_step: optimizer step on a `PolicyBatch`
        scorer: scores batches; needed with kl or old=trainer
        reference: parameters, and frozen ones or None, of the initial model; needed with kl
        row_length: tokens of a row
        longest: tokens of the longest possible completion
    """

    def __init__(
        self,
        config: GrpoConfig,
        model: Transformer,
        questions: Questions,
        requests: Requests,
        engine: RolloutEngine,
        train_step: TrainStep,
        *,
        scorer: Scorer | None,
        reference: tuple[Any, Any] | None,
        row_length: int,
        longest: int,
    ):
        self.config, self.model = config, model
        self.questions, self.requests, self.engine = questions, requests, engine
        self.train_step, self.scorer, self.reference = train_step, scorer, reference
        self.row_length, self.longest = row_length, longest
        self.padding_id = padding_id(requests.tokenizer)
        #: Seconds of the parts of the newest step, by name.
        self.seconds: dict[str, float] = {}

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[f"{name}_s"] = time.monotonic() - start

    def with_weights(self, state: TrainState, use: Callable[[], Any]) -> Any:
        """Call a function while the engine has the state's weights."""
        with self._timed("load"):
            self.engine.load(state.params, state.frozen)
        result = use()
        self.engine.release()
        return result

    def roll_out(self, number: int, state: TrainState) -> RollOut:
        """Sample and grade the completions of a step; every process some of the groups.

        Raises:
            UserError: a question that does not run, or whose grader fails
        """
        config, items = self.config, self.questions.items
        groups = plan_groups(
            number,
            seed=config.seed,
            num_questions=len(items),
            prompts=config.prompts,
            budgets=config.budgets,
        )
        graded = self.with_weights(state, lambda: distributed.share(groups, self._graded))
        rewards = np.asarray([[g.reward for g in group] for group in graded])
        return RollOut(groups, graded, *advantages(rewards, config.objective.normalize))

    def _graded(self, groups: Sequence[Group]) -> list[list[Graded]]:
        """The completions of some groups, with their rewards."""
        items, requests = self.questions.items, self.requests
        with self._timed("rollout"):
            done = self.engine.complete(
                [
                    requests.sampled(items[g.question].text, g.budget, self.config.group, g.seed)
                    for g in groups
                ]
            )
        tokenizer, grader = requests.tokenizer, self.questions.grader
        with self._timed("grading"):
            return [
                [grade(c, items[group.question], grader, tokenizer) for c in completions]
                for group, completions in zip(groups, done, strict=True)
            ]

    def update(
        self, number: int, state: TrainState, rollout: RollOut
    ) -> tuple[TrainState, dict[str, float], tuple[int, ...]]:
        """Learn from a roll-out: the state after it, metrics, and the numbers of micro-batches.

        If all groups are dead, only the state's step changes.
        """
        with self._timed("step"):
            batches = self._batches(number, rollout, state)
            metrics = []
            for batch in batches:
                state, found = self.train_step(state, put_batch(batch, self.model.rules))
                metrics.append(found)
            values = _means(jax.device_get(metrics))
        # objective.updates optimizer steps, or none, are one step of the run
        state = state._replace(step=put_scalar(number + 1, state.step.sharding))
        values = rollout_metrics(rollout.groups, rollout.graded_PG, rollout.live_P) | values
        return state, values, tuple(batch.tokens.shape[0] for batch in batches)

    def _batches(self, number: int, rollout: RollOut, state: TrainState) -> list[PolicyBatch]:
        """The packed batch of every optimizer step."""
        config = self.config
        trajectories = [
            trajectory(graded.completion, float(advantage))
            for row, graded_G, live in zip(
                rollout.advantage_PG, rollout.graded_PG, rollout.live_P, strict=True
            )
            if live
            for advantage, graded in zip(row, graded_G, strict=True)
        ]
        updates = config.objective.updates
        parts = update_order(number, seed=config.seed, sequences=len(trajectories), updates=updates)
        sequences = rollout.advantage_PG.size / updates
        packed = [self._pack([trajectories[i] for i in p], sequences) for p in parts if len(p)]
        return [self._scored(batch, state) for batch in packed]

    def _pack(self, trajectories: Sequence[Trajectory], sequences: float) -> PolicyBatch:
        weights = sequence_weights(
            trajectories, self.config.objective, sequences=sequences, longest=self.longest
        )
        return pack(
            trajectories,
            weights,
            rows=self.config.rows,
            row_length=self.row_length,
            padding_id=self.padding_id,
        )

    def _scored(self, batch: PolicyBatch, state: TrainState) -> PolicyBatch:
        """The batch with log-probabilities under other weights than those of the step."""
        more = {}
        if self.config.objective.old == "trainer":
            more["old"] = self._scores(batch, (state.params, state.frozen))
        if self.reference is not None:
            more["reference"] = self._scores(batch, self.reference)
        return batch._replace(columns=batch.columns._replace(**more))

    def _scores(self, batch: PolicyBatch, weights: tuple[Any, Any]) -> np.ndarray:
        assert self.scorer is not None
        scores: Any = self.scorer(*weights, put_batch(batch, self.model.rules))
        if jax.process_count() > 1:
            scores = multihost_utils.process_allgather(scores, tiled=True)
        return np.where(batch.columns.weights > 0, np.asarray(scores), np.float32(0))


def _means(metrics: Sequence[StepMetrics]) -> dict[str, float]:
    """Metrics of the optimizer steps of a roll-out, averaged.

    Decoding and training are compared in the first one: after it their weights differ.
    """
    rows = [
        {"loss": float(m.loss), "grad_norm": float(m.grad_norm), **token_metrics(m.tokens)}
        for m in metrics
    ]
    if not rows:
        return {}
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return means | {name: rows[0][name] for name in ("gap_mean", "gap_max", "k3")}
