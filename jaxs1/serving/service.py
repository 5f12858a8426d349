"""The server without HTTP: engines, admission, running requests, state."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

from jaxs1.decoding.async_engine import AsyncEngine
from jaxs1.decoding.base_engine import BaseEngine, Load
from jaxs1.decoding.buckets import ladder
from jaxs1.decoding.data_parallel import DataParallelEngine
from jaxs1.decoding.engine import Engine
from jaxs1.decoding.loading import load_engine
from jaxs1.decoding.warm_up import warm_up
from jaxs1.serving.admission import Admission
from jaxs1.serving.config import ServeConfig
from jaxs1.serving.errors import ApiError, bad_request
from jaxs1.serving.metrics import Metrics
from jaxs1.serving.output_stream import Mailbox, OutputStream
from jaxs1.serving.pace import Pace
from jaxs1.serving.requests import Job
from jaxs1.serving.responses import Reply
from jaxs1.serving.running import Running

#: Seconds between two looks at the engines.
WATCH = 0.2
#: A run that takes this many times the longest one so far has hung, but not before HANG seconds.
HANG_FACTOR, HANG = 10, 300.0
#: Threads that render and tokenize prompts: more of them would only keep the others from running.
RENDERERS = 2
log = logging.getLogger("jaxs1.serve")
T = TypeVar("T")


class Service:
    """Engines that serve requests. Everything here happens in one event loop.

    Args:
        config: settings of the server
    """

    def __init__(self, config: ServeConfig):
        self.config = config
        #: loading, compiling, ready, draining or failed
        self.state = "loading"
        self.description = ""
        self.fingerprint = ""
        self.finished = asyncio.Event()
        self._mailbox = Mailbox()
        self._renderers = ThreadPoolExecutor(RENDERERS, thread_name_prefix="render")
        self.running: dict[str, Running] = {}
        self.metrics = Metrics(config.names[0], self.load)
        self._engines: list[Engine] = []
        self._threads: list[AsyncEngine] = []
        self._paces: list[Pace] = []
        self._inside: list[int] = []
        self._watcher: asyncio.Task[None] | None = None
        jax.monitoring.register_event_duration_secs_listener(self.metrics.compiled)

    @property
    def engine(self) -> BaseEngine:
        """An engine, to render prompts for and to check requests with."""
        return self._engines[0]

    def load(self) -> Load:
        """What all engines have to do."""
        loads = [engine.load() for engine in self._engines]
        return Load(*map(sum, zip(*loads, strict=True))) if loads else Load(0, 0, 0, 0, 0)

    async def open(self) -> None:
        """Load the model and compile its programs; ready afterwards.

        Raises:
            UserError: the model cannot be loaded
        """
        loaded = await asyncio.to_thread(load_engine, self.config)
        engine: Any = loaded.engine
        self.description = loaded.description
        self.fingerprint = "fp_" + hashlib.sha256(loaded.fingerprint.encode()).hexdigest()[:12]
        await self.use(engine.engines if isinstance(engine, DataParallelEngine) else [engine])

    async def use(self, engines: list[Engine]) -> None:
        """Serve with engines that have been loaded; ready afterwards."""
        self.state = "compiling"
        self._engines = engines
        limits = self.config.limits
        for engine in engines:
            engine.scheduler.prefix_caching = self.config.prefix_caching
            pace = Pace(self.config.latency, engine.limits.decode_steps, self.metrics.ran)
            self._paces.append(pace)
            self._threads.append(AsyncEngine(lambda e=engine: e, pace.step))  # type: ignore[misc]
        self._inside = [0] * len(engines)
        self.admission = Admission(
            limits.max_num_seqs * len(engines),
            self.config.max_waiting,
            self.config.max_waiting_tokens,
        )
        if self.config.warm_up == "ladder":
            await asyncio.gather(*(asyncio.to_thread(self._warm_up, e) for e in engines))
        self._watcher = asyncio.create_task(self._watch())
        if self.state == "compiling":
            self.state = "ready"
        self.metrics.ready.set(1)

    def check_ready(self) -> None:
        """Raise `ApiError` 503 unless requests are accepted."""
        if self.state != "ready":
            raise ApiError(
                503, f"the server is {self.state}; retry later", self.state, retry_after=5
            )

    def check_room(self, sequences: int = 1, prompt_tokens: int = 0) -> None:
        """Raise `ApiError` unless a request can be accepted now."""
        self.check_ready()
        try:
            self.admission.check(sequences, prompt_tokens)
        except ApiError as error:
            self.metrics.rejected(error.code).inc()
            raise

    async def render(self, make: Callable[[], T]) -> T:
        """Run what renders and tokenizes a prompt, in one of a few threads."""
        return await asyncio.get_running_loop().run_in_executor(self._renderers, make)

    async def start(self, make: Callable[[], Job]) -> Running:
        """Make, admit and submit a request; the caller closes it.

        Raises:
            ApiError: the request is wrong, the server is not ready, or its queue is full
        """
        self.check_room()
        with self.admission.place():
            job = await self.render(make)
        return self._submit(job)

    def _submit(self, job: Job) -> Running:
        if job.request_id and job.request_id in (name.partition("-")[2] for name in self.running):
            raise bad_request(
                f"request_id={job.request_id}: is in use; give another one", "request_id"
            )
        self.check_room(job.sequences, job.prompt_tokens)
        self.admission.enter(job.sequences, job.prompt_tokens)
        chosen = self._inside.index(min(self._inside))
        self._inside[chosen] += job.sequences
        request_id = job.request_id or uuid.uuid4().hex
        reply = Reply(job, request_id, self.engine.tokenizer, self.fingerprint)
        stream = OutputStream(self._threads[chosen], job.requests, self._mailbox)
        running = Running(self, reply, stream, chosen)
        self.running[reply.id] = running
        return running

    def leave(self, running: Running, engine: int) -> None:
        """A request has ended, one way or another."""
        job = running.reply.job
        self.running.pop(running.reply.id, None)
        self.admission.leave(job.sequences)
        self._inside[engine] -= job.sequences

    async def drain(self) -> None:
        """Accept nothing new, let what runs finish, and end."""
        if self.state in ("draining", "failed"):
            return
        self.state = "draining"
        self.metrics.ready.set(0)
        log.info("draining: %d requests are running", len(self.running))
        deadline = time.monotonic() + self.config.drain
        while self.running and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for running in list(self.running.values()):
            running.stream.fail(ApiError(503, "the server is shutting down", "draining"))
        self.finished.set()

    async def close(self) -> None:
        """Stop the engines' threads."""
        if self._watcher is not None:
            self._watcher.cancel()
        jax.monitoring.unregister_event_duration_listener(self.metrics.compiled)
        self._renderers.shutdown(wait=False, cancel_futures=True)
        if self.state != "failed":  # a thread that hangs cannot be joined
            await asyncio.gather(*(asyncio.to_thread(thread.close) for thread in self._threads))

    def fail(self, why: str) -> None:
        """Give up: all requests get an error, and the process has to be restarted."""
        if self.state == "failed":
            return
        log.error("engine failed: %s", why)
        self.state = "failed"
        self.metrics.ready.set(0)
        for running in list(self.running.values()):
            running.stream.fail(ApiError(500, "the engine failed", "internal_error"))
        self.finished.set()

    def _warm_up(self, engine: Engine) -> None:
        begin = time.monotonic()
        engine.buckets = ladder(
            rows=engine.limits.max_num_seqs,
            pages=engine.scheduler.max_pages,
            tokens=engine.limits.prefill_chunk_tokens,
        )
        names = list(warm_up(engine))
        log.info("%d programs compiled in %.1f s", len(names), time.monotonic() - begin)

    async def _watch(self) -> None:
        """Notice an engine that has failed or hangs; measure the lag of the event loop."""
        while True:
            due = time.monotonic() + WATCH
            await asyncio.sleep(WATCH)
            self.metrics.lag.observe(max(0.0, time.monotonic() - due))
            for thread, pace in zip(self._threads, self._paces, strict=True):
                if thread.error is not None:
                    log.error("", exc_info=thread.error)
                    self.fail(repr(thread.error)[:200])
                elif pace.running_for() > max(HANG, HANG_FACTOR * pace.longest):
                    self.fail(f"a run has taken {pace.running_for():.0f} s")
