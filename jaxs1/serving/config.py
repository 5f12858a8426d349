"""Settings of the server."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxs1.config import UserError
from jaxs1.decoding.loading import EngineConfig
from jaxs1.decoding.params import SamplingParams, ThinkingParams

#: Environment variable with keys, separated by commas.
KEY_VARIABLE = "JAXS1_API_KEY"
EFFORTS = {"minimal": 256, "low": 1024, "medium": 4096, "high": 16384, "xhigh": -1, "max": -1}


@dataclass(frozen=True)
class ThinkingDefaults(ThinkingParams):
    """Defaults of a request's thinking: bounded, or a request could hold the entire cache."""

    max: int | Literal["auto"] = 8192
    max_answer_tokens: int = 4096


@dataclass(frozen=True)
class SamplingDefaults(SamplingParams):
    """Defaults of a request's sampling, those of OpenAI's API."""

    temperature: float = 1.0


@dataclass(frozen=True)
class ServeConfig(EngineConfig):
    """Serve a model over HTTP with OpenAI's API.

    Args:
        host: address to listen on; 127.0.0.1 is reachable from this machine only
        port: TCP port; 0 takes a free one and prints it
        served_names: names of the model in the API; empty: the last part of `model`
        api_key: keys that clients may send; empty: those of the environment variable
            JAXS1_API_KEY, or no key at all
        thinking: defaults of a request's thinking
        ceiling: maximum thinking tokens that a request may ask for; larger budgets are clamped;
            null: no maximum
        efforts: thinking tokens of each reasoning_effort; -1: limited only by the context
        sampling: defaults of a request's sampling
        latency: seconds between two events of a stream, at most
        max_waiting: number of sequences that may wait; further requests get status 429
        max_waiting_tokens: prompt tokens that may wait; further requests get status 429
        queue_timeout: seconds that a request may wait for its first token
        request_timeout: seconds that a request may take
        max_body: size of a request's body [bytes]
        body_timeout: seconds within which a request's body must arrive
        drain: seconds that running requests may still take after SIGTERM
        prefix_caching: whether requests that begin alike share their prefill
        warm_up: ladder compiles all programs before the server is ready; off compiles when needed,
            while all streams wait
        cors: origins of web pages that may use the API
        playground: serve a page at / on which to try budgets
        metrics: serve Prometheus metrics at /metrics
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_names: tuple[str, ...] = ()
    api_key: tuple[str, ...] = ()
    thinking: ThinkingDefaults = field(default_factory=ThinkingDefaults)
    ceiling: int | None = None
    efforts: dict[str, int] = field(default_factory=lambda: dict(EFFORTS))
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    latency: float = 0.1
    max_waiting: int = 256
    max_waiting_tokens: int = 1_000_000
    queue_timeout: float = 120.0
    request_timeout: float = 3600.0
    max_body: int = 4 << 20
    body_timeout: float = 30.0
    drain: float = 30.0
    prefix_caching: bool = True
    warm_up: Literal["ladder", "off"] = "ladder"
    cors: tuple[str, ...] = ()
    playground: bool = True
    metrics: bool = True

    def __post_init__(self) -> None:
        """Check the ranges of all numbers."""
        if not 0 <= self.port < 65536:
            raise UserError(f"port={self.port}: must be between 0 and 65535")
        positive = ("latency", "queue_timeout", "request_timeout", "max_body", "body_timeout")
        for name in positive:
            if getattr(self, name) <= 0:
                raise UserError(f"{name}={getattr(self, name)}: must be above 0")
        for name in ("max_waiting", "max_waiting_tokens", "drain"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: must be 0 or more")
        if self.ceiling is not None and self.ceiling < 0:
            raise UserError(f"ceiling={self.ceiling}: must be 0 or more, or null (no maximum)")
        if wrong := [f"{k}: {v}" for k, v in self.efforts.items() if v < -1]:
            raise UserError(f"efforts={wrong[0]}: must be 0 or more, or -1 (no limit)")
        if self.thinking.max == "auto":
            raise UserError("thinking.max=auto: depends on a batch; give a number of tokens")
        if "*" in self.cors:
            raise UserError("cors=*: would let any web page use the server; list its origins")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model in the API, the canonical one first."""
        return self.served_names or (Path(self.model.rstrip("/")).name or self.model,)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys that clients may send; empty: none is needed."""
        given = os.environ.get(KEY_VARIABLE, "").split(",")
        return self.api_key or tuple(key.strip() for key in given if key.strip())
