"""A model in our own engine: many threads ask, one steps.

The engine is loaded with the first question and given back by `close`, so that several models can
take turns on the same devices. A question's seed comes from its text: its answer depends neither
on the order of the questions nor on how many there are.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from concurrent.futures import Future
from typing import Any

from convert.weights import open_weights
from jaxs1.config import UserError, one_line
from jaxs1.curation.labelers import ModelConfig, NoAnswer
from jaxs1.decoding.base_engine import BaseEngine
from jaxs1.decoding.loading import EngineConfig, ParallelConfig, load_engine
from jaxs1.decoding.outputs import Completion
from jaxs1.decoding.params import Request, SamplingParams, ThinkingParams
from jaxs1.decoding.prompt import prompt_ids
from jaxs1.decoding.scheduler import Limits

#: Prompts and who waits for their answers; None ends the engine.
_Questions = queue.SimpleQueue[tuple[str, "Future[str]"] | None]


class OwnEngine:
    """See `models.Model`.

    Args:
        config: checked; its url is empty

    Raises:
        UserError: there are no weights.
    """

    def __init__(self, config: ModelConfig) -> None:
        # of paths, sizes and times of change: a copy of the weights is another model
        stamp = open_weights(config.model).fingerprint()
        self.identity = f"{stamp} {config.temperature} {config.max_tokens}"
        self.where = f"our engine with {config.model}"
        # as many again wait, so that no slot is empty while answers are graded
        self.parallel = 2 * config.parallel * config.replicas
        self._config = config
        self._start = threading.Lock()
        self._questions: _Questions = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def answer(self, prompt: str) -> str:
        """See `models.Model`."""
        answer: Future[str] = Future()
        with self._start:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, daemon=True)
                self._thread.start()
        self._questions.put((prompt, answer))
        return answer.result()

    def close(self) -> None:
        """See `models.Model`."""
        if self._thread is not None:
            self._questions.put(None)
            self._thread.join()

    def _serve(self) -> None:
        """Answer until the end is asked for; after a failure, tell its reason to all who ask."""
        waiting: dict[int, Future[str]] = {}
        failure: Exception = NoAnswer("interrupted")
        ended = False
        try:
            engine = self._open()
            while self._take(engine, waiting):
                for event in engine.step():
                    if event.completion is not None:
                        _settle(waiting.pop(event.request), event.completion)
            ended = True
        except UserError as error:
            failure = UserError(f"{self.where}: {error}")
        except Exception as error:  # whatever the device says
            failure = NoAnswer(one_line(error)[:200] or type(error).__name__, fatal=True)
        for answer in waiting.values():
            answer.set_exception(failure)
        while not ended and (asked := self._questions.get()):
            asked[1].set_exception(failure)

    def _open(self) -> BaseEngine:
        config = self._config
        settings = EngineConfig(
            model=config.model,
            limits=Limits(max_num_seqs=config.parallel),
            parallel=ParallelConfig(config.tensor, config.replicas),
        )
        opened = load_engine(settings)
        print(opened.description, flush=True)
        return opened.engine

    def _take(self, engine: BaseEngine, waiting: dict[int, Future[str]]) -> bool:
        """Submit all questions, or wait for one where nothing is to be done; False at the end."""
        while True:
            try:
                asked = self._questions.get(block=not engine.busy)
            except queue.Empty:
                return True
            if asked is None:
                return False
            prompt, waiting[engine.submitted] = asked
            engine.submit(self._request(prompt, engine.tokenizer))

    def _request(self, prompt: str, tokenizer: Any) -> Request:
        prompt = prompt.encode(errors="replace").decode()  # no tokenizer reads half a surrogate
        thinking = ThinkingParams(mode="off", max_answer_tokens=self._config.max_tokens)
        ids = prompt_ids([{"role": "user", "content": prompt}], thinking, tokenizer)
        seed = int(hashlib.sha256(prompt.encode()).hexdigest()[:7], 16)
        return Request(
            ids, thinking, SamplingParams(temperature=self._config.temperature), seed=seed
        )


def _settle(answer: Future[str], completion: Completion) -> None:
    """Hand a completion to who waits for it."""
    if completion.answer:
        answer.set_result(completion.answer)
    else:
        reason = completion.error or "a completion without text"
        answer.set_exception(NoAnswer(reason, refused=True))
