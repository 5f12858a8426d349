"""Settings of reinforcement learning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jaxs1.config import UserError
from jaxs1.decoding.params import ThinkingParams
from jaxs1.decoding.scheduler import Limits
from jaxs1.model.config import ComputeConfig, LoraConfig, MeshConfig
from jaxs1.tasks.benchmarks import QuestionsConfig
from jaxs1.training.config import (
    CheckpointConfig,
    DistributedConfig,
    LogConfig,
    OptimizerConfig,
)


@dataclass(frozen=True)
class BudgetsConfig:
    """Thinking budgets of the roll-outs; every group draws one.

    Args:
        values: Thinking budgets, drawn with equal probability [tokens]
        start: Budgets of the first step, as many as `values`, to which they move linearly; null
            uses `values` from the start
        until: Step from which on the budgets are `values`; with start
        told: Sentence with {value} that tells the model its budget, behind the question, e.g.
            "Think for up to {value} tokens."; null does not tell it
    """

    values: tuple[int, ...] = (512, 1024, 2048)
    start: tuple[int, ...] | None = None
    until: int = 0
    told: str | None = None

    def __post_init__(self) -> None:
        """Check the budgets and the sentence."""
        for name in ("values", "start"):
            budgets = getattr(self, name)
            if budgets is not None and (not budgets or min(budgets) < 0):
                raise UserError(
                    f"budgets.{name}={list(budgets)}: must be numbers of tokens, 0 or more, "
                    "at least one"
                )
        if self.start is not None and len(self.start) != len(self.values):
            raise UserError(
                f"budgets.start={list(self.start)}: must have as many budgets as budgets.values="
                f"{list(self.values)}"
            )
        if (self.start is None) != (self.until == 0) or self.until < 0:
            raise UserError(
                f"budgets.until={self.until}: is the step at which the way from budgets.start to "
                "budgets.values ends; give both, or neither"
            )
        if self.told is not None and "{value}" not in self.told:
            raise UserError(
                f"budgets.told={self.told!r}: must contain {{value}}, where the budget is written"
            )

    @property
    def largest(self) -> int:
        """The largest budget of a run."""
        return max((*self.values, *(self.start or ())))


@dataclass(frozen=True)
class ObjectiveConfig:
    """Loss of a step. r: probability of a token over that when it was drawn; A: its advantage.

    Args:
        surrogate: Loss of a token; clip is -min(r A, clamp(r, 1 - clip_low, 1 + clip_high) A) (PPO,
            GRPO); cispo is -min(r, cap) A log p, with no gradient through r (MiniMax-M1)
        aggregate: Weight of a token's loss, with N chosen tokens, S sequences, n chosen tokens of
            its sequence and the longest possible completion of L tokens; token is 1 / N (DAPO),
            sequence is 1 / (S n) (GRPO), constant is 1 / (S L) (Dr. GRPO)
        normalize: Divisor of an advantage (reward minus mean of the group); none, standard
            deviation of the group's rewards (GRPO), or of all rewards of the step (batch)
        clip_low: Decrease of r beyond which clip gives no gradient
        clip_high: Increase of r beyond which clip gives no gradient
        cap: Largest r; null is no limit, which cispo requires
        kl: Weight of the KL divergence from the initial model (k3 estimator); 0 does not compute it
        old: Where r's denominator comes from; sampler is what decoding reported, trainer computes
            it once more before the step, and weighs tokens by trainer / sampler, at most tis_cap
        tis_cap: Largest weight of truncated importance sampling; with old=trainer
        updates: Optimizer steps per roll-out; with more than 1, each takes a part of the sequences
    """

    surrogate: Literal["clip", "cispo"] = "clip"
    aggregate: Literal["token", "sequence", "constant"] = "token"
    normalize: Literal["none", "group", "batch"] = "none"
    clip_low: float = 0.2
    clip_high: float = 0.28
    cap: float | None = None
    kl: float = 0.0
    old: Literal["sampler", "trainer"] = "sampler"
    tis_cap: float = 2.0
    updates: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("clip_low", "clip_high", "kl"):
            value = getattr(self, name)
            if value < 0:
                raise UserError(f"objective.{name}={value}: must be 0 or more")
        if self.clip_low > 1:
            raise UserError(f"objective.clip_low={self.clip_low}: must be at most 1")
        if self.surrogate == "cispo" and self.cap is None:
            raise UserError(
                "objective.cap=null: surrogate=cispo needs the largest ratio; give e.g. "
                "--objective.cap 5"
            )
        for name, minimum in (("cap", 1), ("tis_cap", 1), ("updates", 1)):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise UserError(f"objective.{name}={value}: must be at least {minimum}")


@dataclass(frozen=True)
class HeldOutConfig:
    """Evaluation on questions that are not trained on, greedily, at fixed budgets.

    Args:
        every: Steps between evaluations; one before the first step and one at the end are added; 0
            disables it
        task: Task of the questions, or FILE.jsonl; null takes that of training
        path: File with the questions of a named task
        budgets: Thinking budgets [tokens]
        limit: Number of questions to use, the first ones; null uses all
    """

    every: int = 0
    task: str | None = None
    path: str | None = None
    budgets: tuple[int, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        """Check that there is something to evaluate."""
        if self.every < 0:
            raise UserError(f"held_out.every={self.every}: must be 0 (never) or more")
        if self.every and not self.budgets:
            raise UserError("held_out.budgets=[]: names no budget; give e.g. [512, 2048]")
        if self.every and self.task is None and self.path is None:
            raise UserError(
                "held_out.path=null: evaluating needs questions that are not trained on; give "
                "--held_out.path FILE.jsonl or --held_out.task"
            )
        if self.limit is not None and self.limit < 1:
            raise UserError(f"held_out.limit={self.limit}: must be at least 1")


@dataclass(frozen=True)
class GrpoConfig:
    """Reinforcement learning (GRPO) of a model that thinks within budgets.

    Args:
        model: Initial weights: Hugging Face folder, hub id or checkpoint
        architecture: Model shapes, for `plan` where `model` is not there yet: a config.json in
            Hugging Face form, or a name such as qwen2.5-7b
        tokenizer: Hugging Face folder or hub id of the tokenizer; null uses that of `model`
        output: Run directory for settings, metrics, samples, checkpoints and the export in hf/
        task: Task: aime24, aime25, math500, gpqa, gsm8k, puzzles, or a FILE.jsonl of your own
        steps: Number of roll-outs, each followed by objective.updates optimizer steps
        prompts: Questions per roll-out
        group: Samples per question
        temperature: Sampling temperature of the roll-outs
        rows: Rows per micro-batch into which sequences are packed
        row_length: Length of a row [tokens]; null takes the longest possible sequence, rounded up
            to a multiple of 128
        tensor: Devices that share one copy of the model during roll-outs
        samples: Completions per roll-out to store in samples.jsonl
        export_dtype: Data type of the exported weights
        seed: Random seed for questions, budgets and sampling
        resume: Treatment of an existing run in `output`: auto continues from its newest checkpoint,
            never refuses to start
        data: Questions of the task
        budgets: Thinking budgets
        thinking: Thinking parameters of all roll-outs, except for the budget
        objective: Loss
        held_out: Evaluation on other questions during training
        optimizer: Optimizer; its steps are those of all roll-outs
        limits: Limits of decoding
        lora: LoRA adapters
        mesh: Device mesh of training
        compute: Model computation
        checkpoint: Checkpoints
        log: Logging
        distributed: Multi-process training
    """

    model: str = ""
    architecture: str | None = None
    tokenizer: str | None = None
    output: str = "runs/grpo"
    task: str = ""
    steps: int = 100
    prompts: int = 16
    group: int = 8
    temperature: float = 1.0
    rows: int = 8
    row_length: int | None = None
    tensor: int = 1
    samples: int = 10
    export_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    seed: int = 0
    resume: Literal["auto", "never"] = "never"
    data: QuestionsConfig = field(default_factory=QuestionsConfig)
    budgets: BudgetsConfig = field(default_factory=BudgetsConfig)
    thinking: ThinkingParams = field(default_factory=ThinkingParams)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    limits: Limits = field(default_factory=Limits)
    lora: LoraConfig = field(default_factory=LoraConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        """Check everything that depends on neither the model nor the devices."""
        for name, example in (("model", "--model DIR"), ("task", "--task FILE.jsonl")):
            if not getattr(self, name):
                raise UserError(f"{name}='': must be given; e.g. {example}")
        for name in ("steps", "prompts", "rows", "tensor", "row_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: must be at least 1")
        if self.group < 2:
            raise UserError(
                f"group={self.group}: a sample is compared with others of its question; give 2 or "
                "more, e.g. 8"
            )
        if not self.temperature > 0:
            raise UserError(
                f"temperature={self.temperature}: all samples of a question would be equal; give "
                "a number above 0, e.g. 1"
            )
        if self.samples < 0:
            raise UserError(f"samples={self.samples}: must be 0 or more")
        self._check_thinking()

    def _check_thinking(self) -> None:
        thinking = self.thinking
        if thinking.max != -1:
            raise UserError(
                f"thinking.max={thinking.max}: every group has a budget of its own; give "
                "--budgets.values, and leave this out"
            )
        if thinking.mode != "strict":
            raise UserError(
                f"thinking.mode={thinking.mode}: roll-outs need budgets that hold; leave it out"
            )
        if thinking.max_answer_tokens < 1:
            raise UserError(
                f"thinking.max_answer_tokens={thinking.max_answer_tokens}: an answer of a roll-out "
                "must have a limit; give e.g. --thinking.max_answer_tokens 512"
            )
        smallest = min((*self.budgets.values, *(self.budgets.start or ())))
        if smallest < thinking.min:
            raise UserError(
                f"budgets.values={list(self.budgets.values)}: no budget may be below "
                f"thinking.min={thinking.min}; raise it or lower thinking.min"
            )
        if smallest == 0 and not thinking.answer_prefix:
            raise UserError(
                "budgets.values: a budget of 0 leaves no thinking, and without "
                "thinking.answer_prefix nothing says that an answer is due; give one, e.g. "
                "'\\nFinal Answer:'"
            )
