"""A model in the local engine, which one thread steps while many threads wait for answers.

The engine is loaded with the first question and released by `close`, so several models can take
turns on the same devices. A question's seed is derived from its text: its answer depends neither on
the order nor on the number of questions.
"""

from __future__ import annotations

from typing import Any

from convert.weights import open_weights
from jaxs1.config import UserError, one_line
from jaxs1.curation.labelers import ModelConfig, NoAnswer
from jaxs1.decoding.async_engine import AsyncEngine, EngineClosed
from jaxs1.decoding.base_engine import BaseEngine
from jaxs1.decoding.loading import EngineConfig, ParallelConfig, load_engine
from jaxs1.decoding.params import Request, SamplingParams, ThinkingParams
from jaxs1.decoding.prompt import prompt_ids
from jaxs1.decoding.sampling import seed_from_text
from jaxs1.decoding.scheduler import Limits


class LocalModel:
    """See `labelers.Model`.

    Args:
        config: Checked settings without a url

    Raises:
        UserError: the weights do not exist.
    """

    def __init__(self, config: ModelConfig) -> None:
        # paths, sizes and modification times: a copy of the weights counts as another model
        fingerprint = open_weights(config.model).fingerprint()
        self.identity = f"{fingerprint} {config.temperature} {config.max_tokens}"
        self.where = f"the local engine with {config.model}"
        # as many again wait, so the batch stays full while answers are graded
        self.parallel = 2 * config.parallel * config.replicas
        self._config = config
        self._engine = AsyncEngine(lambda: self._open())

    def answer(self, prompt: str) -> str:
        """See `labelers.Model`."""
        answer = self._engine.submit(lambda tokenizer: self._request(prompt, tokenizer))
        try:
            (completion,) = answer.result()
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from None
        except EngineClosed:
            raise NoAnswer("interrupted") from None
        except Exception as error:  # whatever the device says
            raise NoAnswer(one_line(error)[:200] or type(error).__name__, fatal=True) from error
        if not completion.answer:
            raise NoAnswer(completion.error or "a completion without text", refused=True)
        return completion.answer

    def close(self) -> None:
        """See `labelers.Model`."""
        self._engine.close()

    def _open(self) -> BaseEngine:
        config = self._config
        settings = EngineConfig(
            model=config.model,
            limits=Limits(max_num_seqs=config.parallel),
            parallel=ParallelConfig(config.tensor, config.replicas),
        )
        loaded = load_engine(settings)
        print(loaded.description, flush=True)
        return loaded.engine

    def _request(self, prompt: str, tokenizer: Any) -> Request:
        # no tokenizer accepts half of a surrogate pair
        prompt = prompt.encode(errors="replace").decode()
        thinking = ThinkingParams(mode="off", max_answer_tokens=self._config.max_tokens)
        ids = prompt_ids([{"role": "user", "content": prompt}], thinking, tokenizer)
        sampling = SamplingParams(temperature=self._config.temperature)
        return Request(ids, thinking, sampling, seed=seed_from_text(prompt))
