"""Settings of the traces of a teacher."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxs1.config import UserError
from jaxs1.decoding.loading import EngineConfig
from jaxs1.decoding.params import SamplingParams, ThinkingParams
from jaxs1.inference.openai_client import EndpointConfig
from jaxs1.tasks.benchmarks import QuestionsConfig

Keep = Literal["all", "shortest", "longest", "random"]


@dataclass(frozen=True)
class TeacherEndpoint(EndpointConfig):
    """An OpenAI-compatible endpoint as the teacher.

    Args:
        parallel: Number of concurrent requests (endpoint only; limits.max_num_seqs is the engine's)
        body: Further fields of every request, e.g. '{"thinking": {"budget_tokens": 4000}}'; null
            removes a field that is sent otherwise, such as seed (endpoint only)
    """

    timeout: float = 3600.0
    body: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class TeacherSampling(SamplingParams):
    """Sampling of the traces: what DeepSeek recommends for R1 and its distills."""

    temperature: float = 0.6
    top_p: float = 0.95


@dataclass(frozen=True)
class PriceConfig:
    """Prices of the teacher.

    Args:
        input: Price of a million tokens of prompts [dollars]
        output: Price of a million tokens of thinking and answers [dollars]
    """

    input: float = 0.0
    output: float = 0.0

    def __post_init__(self) -> None:
        """Reject negative prices."""
        for name, value in vars(self).items():
            if not value >= 0:
                raise UserError(f"price.{name}={value}: must be 0 or more")


@dataclass(frozen=True)
class TracesConfig(EngineConfig):
    """Let a teacher answer questions, and keep its thinking where the answer is right.

    Args:
        model: Teacher: its name at the endpoint; for the local engine a Hugging Face folder, hub
            id, converted checkpoint or training run
        questions: File (.jsonl or .parquet), id of a hub dataset (owner/name), output folder of
            `jaxs1 curate`, or a named benchmark. Answers are checked where a question has one
        output: Output folder; the same command resumes an interrupted run
        prompt: Text of a request; {question} stands for the question
        system: System message; null for none
        n: Number of samples per question
        seed: Random seed of sampling, and of keep=random
        limit: Number of questions to use, the first ones; null uses all
        max_tokens: Maximum length of thinking and answer together [tokens]
        keep: Traces to keep of a question: all that are right, or of these the shortest, the
            longest, or a random one
        max_cost: Cost at which to stop, with the answers of earlier runs in `output` [dollars]; a
            request is sent only if its longest possible answer fits; null for no limit
        allow_failed: Finish although some requests failed for good; their questions have fewer
            traces then
        group_by: Columns of the questions; the report has the share of right answers for each of
            their values
        data: Columns and answers of the questions
        endpoint: Endpoint of the teacher
        price: Prices of the teacher
        thinking: Thinking parameters (local engine only)
        sampling: Sampling parameters; an endpoint is sent temperature and top_p
    """

    questions: str = ""
    output: str = "runs/traces"
    prompt: str = "{question}"
    system: str | None = None
    n: int = 1
    seed: int = 0
    limit: int | None = None
    max_tokens: int = 32768
    keep: Keep = "all"
    max_cost: float | None = None
    allow_failed: bool = False
    group_by: list[str] = field(
        default_factory=lambda: ["source_type", "source", "difficulty", "level"]
    )
    data: QuestionsConfig = field(default_factory=QuestionsConfig)
    endpoint: TeacherEndpoint = field(default_factory=TeacherEndpoint)
    price: PriceConfig = field(default_factory=PriceConfig)
    thinking: ThinkingParams = field(default_factory=ThinkingParams)
    sampling: TeacherSampling = field(default_factory=TeacherSampling)

    def __post_init__(self) -> None:
        """Reject settings under which nothing could be asked."""
        for name, what in (("questions", "the questions"), ("model", "the teacher")):
            if not getattr(self, name):
                raise UserError(f"{name}='': must name {what}; give --{name}")
        for name in ("n", "limit", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: must be 1 or more")
        if "{question}" not in self.prompt:
            raise UserError(f"prompt={self.prompt!r:.60}: must contain {{question}}; add it")
        if self.n > 1 and self.sampling.is_greedy:
            raise UserError(
                f"n={self.n}: all samples of greedy decoding are equal; "
                "give --sampling.temperature 0.6, or --n 1"
            )
        if self.max_cost is not None and not (self.price.input or self.price.output):
            raise UserError(
                f"max_cost={self.max_cost}: needs prices; give --price.input and --price.output"
            )
        self.endpoint.check("endpoint")
        if self.endpoint.url:
            self._check_endpoint()

    def _check_endpoint(self) -> None:
        """Reject settings of the local engine that an endpoint would not honour."""
        for name, default in (("thinking", ThinkingParams()), ("sampling", TeacherSampling())):
            changed = {
                field.name: value
                for field in dataclasses.fields(default)
                if (value := getattr(getattr(self, name), field.name))
                != getattr(default, field.name)
            }
            for field_name in changed.keys() - {"temperature", "top_p"}:
                raise UserError(
                    f"{name}.{field_name}={changed[field_name]}: is for the local engine; name it "
                    "as the endpoint does, e.g. --endpoint.body "
                    """'{"thinking": {"budget_tokens": 4000}}'"""
                )
