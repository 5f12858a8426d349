"""What the parts of `benchmarks.serve` share: requests, the server, the engine alone."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.serve_client import LIMITS, Server
from jaxs1.decoding.loading import EngineConfig, load_engine
from jaxs1.decoding.params import Request, SamplingParams, ThinkingParams
from jaxs1.decoding.prompt import prompt_ids


def body_of(i: int, **changes: Any) -> dict[str, Any]:
    """Request number i: 64 thinking tokens, 32 of the answer."""
    thinking = {"budget_tokens": 64, "min_tokens": 64, "max_answer_tokens": 32}
    return {
        "messages": [{"role": "user", "content": f"Make {i % 97} from 1,2,4,{i % 89}"}],
        "thinking": thinking, "seed": i, "temperature": 1.0, "stream": True,
        "stream_options": {"include_usage": True}, **changes,
    }  # fmt: skip


def quantiles(values: list[float]) -> list[float]:
    """Median, 95th and 99th percentile."""
    if len(values) < 2:
        return values
    cuts = statistics.quantiles(values, n=100)
    return [round(cuts[i], 4) for i in (49, 94, 98)]


class Bench:
    """A server, and the engine alone on the same model.

    Args:
        model: folder
        quick: fewer requests
        soak: duration of the soak [s]
    """

    def __init__(self, model: str, *, quick: bool, soak: float):
        self.model, self.quick, self.soak = model, quick, soak
        self.server = Server(model)
        self._engine: Any = None

    @property
    def longest(self) -> int:
        """A context in which prefill matters, as far as the model has one."""
        config = json.loads((Path(self.model) / "config.json").read_text())
        return min(8192, config["max_position_embeddings"])

    def engine_alone(self, count: int = 600) -> tuple[float, float]:
        """`Engine.run` on the same requests: tokens per second, CPU seconds per token."""
        if self._engine is None:
            self._engine = load_engine(EngineConfig(model=self.model, limits=LIMITS)).engine
            self.engine_alone(count)  # compiles
        thinking = ThinkingParams(max=64, min=64, max_answer_tokens=32)
        tokenizer = self._engine.tokenizer
        requests = [
            Request(
                prompt_ids(body_of(i)["messages"], thinking, tokenizer), thinking,
                SamplingParams(temperature=1.0), seed=i,
            )
            for i in range(count if not self.quick else min(count, 120))
        ]  # fmt: skip
        begin, cpu = time.monotonic(), time.process_time()
        tokens = sum(len(c.tokens) for _, done in self._engine.run(requests) for c in done)
        return tokens / (time.monotonic() - begin), (time.process_time() - cpu) / tokens
