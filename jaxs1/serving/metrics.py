"""Prometheus metrics: vLLM's names where it has one, so that dashboards and routers work; our own.

https://github.com/kubernetes-sigs/gateway-api-inference-extension reads vLLM's names.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from jaxs1.decoding.base_engine import BaseEngine, Load
from jaxs1.decoding.outputs import StreamOutput
from jaxs1.serving.choice import Choice

SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKENS = tuple(2**i for i in range(18))


class Metrics:
    """All metrics of a server.

    Args:
        model: name of the model, a label of every metric
        load: reads the load of all engines
        pages: pages of the KV cache
    """

    def __init__(self, model: str, load: Callable[[], Load]):
        self.registry = CollectorRegistry()
        self._label = {"model_name": model}
        self._gauges(load)
        count, histogram = self._counter, self._histogram
        self.prompt_tokens = count("vllm:prompt_tokens", "Prompt tokens")
        self.generated = count("vllm:generation_tokens", "Generated tokens")
        self.queries = count("vllm:prefix_cache_queries", "Prompt tokens that were looked up")
        self.hits = count("vllm:prefix_cache_hits", "Prompt tokens found in the cache")
        self.success = self._labelled("vllm:request_success", "Completions", "finished_reason")
        self.first_token = histogram("vllm:time_to_first_token_seconds", "Until the first token")
        self.between = histogram(
            "vllm:inter_token_latency_seconds", "Gap between two events, per token of the later one"
        )
        self.end_to_end = histogram("vllm:e2e_request_latency_seconds", "Until the last token")
        self.prompt_length = histogram("vllm:request_prompt_tokens", "Prompt tokens", TOKENS)
        self.output_length = histogram("vllm:request_generation_tokens", "Tokens", TOKENS)
        self.thinking = histogram("jaxs1:thinking_tokens", "Thinking tokens", TOKENS)
        self.budget = histogram("jaxs1:thinking_budget_tokens", "Budget that was granted", TOKENS)
        self.ended = self._labelled("jaxs1:thinking_ended", "Thoughts that ended", "by")
        self.waits = count("jaxs1:waits", "Inserted Waits")
        self.forced = count("jaxs1:forced_tokens", "Tokens that the controller wrote")
        self.rejected = self._labelled("jaxs1:requests_rejected", "Refused requests", "reason")
        self.cancelled = self._labelled("jaxs1:requests_cancelled", "Cancelled requests", "why")
        self.run_steps = histogram("jaxs1:run_steps", "Decode steps of a run", TOKENS)
        self.run_seconds = histogram("jaxs1:run_seconds", "Duration of a run")
        self.lag = histogram("jaxs1:event_loop_lag_seconds", "Lag of the server's event loop")
        self.compilations = count("jaxs1:compilations", "Programs compiled")
        self.compile_seconds = count("jaxs1:compile_seconds", "Time spent on compiling")
        self.ready = Gauge("jaxs1:ready", "Whether the server is ready", registry=self.registry)

    def text(self) -> bytes:
        """All values in Prometheus' format."""
        return generate_latest(self.registry)

    def ran(self, seconds: float, engine: BaseEngine, outputs: list[StreamOutput]) -> None:
        """A run of decode steps; called in the engine's thread."""
        self.run_seconds.observe(seconds)
        self.run_steps.observe(engine.num_steps)
        self.generated.inc(sum(len(output.new_tokens.tokens) for output in outputs))

    def compiled(self, event: str, duration_secs: float, **_: str | int) -> None:
        """An event of JAX; for `jax.monitoring`."""
        if event.endswith("backend_compile_duration"):
            self.compilations.inc()
            self.compile_seconds.inc(duration_secs)

    def finished(self, choice: Choice, ended_by: str) -> None:
        """A choice is complete."""
        usage = choice.usage
        self.success(choice.finish_reason or "error").inc()
        self.ended(ended_by).inc()
        self.output_length.observe(usage.completion)
        self.thinking.observe(usage.thinking)
        self.waits.inc(usage.waits)
        self.forced.inc(usage.forced)
        if choice.limits.budget >= 0:
            self.budget.observe(choice.limits.budget)

    def _gauges(self, load: Callable[[], Load]) -> None:
        def usage() -> float:
            now = load()
            return 1 - now.free_pages / now.pages if now.pages else 0.0

        for name, text, read in (
            ("vllm:num_requests_running", "Sequences that are decoded", lambda: load().running),
            ("vllm:num_requests_waiting", "Sequences that wait", lambda: load().waiting),
            ("vllm:kv_cache_usage_perc", "Used part of the KV cache, 0 to 1", usage),
            ("vllm:gpu_cache_usage_perc", "Older name of kv_cache_usage_perc", usage),
        ):
            gauge = Gauge(name, text, ["model_name"], registry=self.registry)
            gauge.labels(**self._label).set_function(read)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, ["model_name"], registry=self.registry).labels(**self._label)

    def _labelled(self, name: str, text: str, label: str) -> Callable[[str], Counter]:
        counter = Counter(name, text, ["model_name", label], registry=self.registry)
        return lambda value: counter.labels(**self._label, **{label: value})

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        histogram = Histogram(name, text, ["model_name"], registry=self.registry, buckets=buckets)
        return histogram.labels(**self._label)
