"""A labeler in the local engine.

A question's seed is derived from its text: its answer depends neither on the order nor on the
number of questions.
"""

from __future__ import annotations

from typing import Any

from convert.weights import open_weights
from jaxs1.curation.labelers import ModelConfig
from jaxs1.data.text import encodable
from jaxs1.decoding.loading import EngineConfig, ParallelConfig
from jaxs1.decoding.params import Request, SamplingParams, ThinkingParams
from jaxs1.decoding.prompt import prompt_ids
from jaxs1.decoding.sampling import seed_from_text
from jaxs1.decoding.scheduler import Limits
from jaxs1.inference.interface import NoAnswer
from jaxs1.inference.local_engine import LocalEngine


class LocalModel:
    """See `labelers.Labeler`.

    Args:
        config: Checked settings without a url

    Raises:
        UserError: the weights do not exist.
    """

    def __init__(self, config: ModelConfig) -> None:
        # paths, sizes and modification times: a copy of the weights counts as another model
        fingerprint = open_weights(config.model).fingerprint()
        self.identity = f"{fingerprint} {config.temperature} {config.max_tokens}"
        self._config = config
        self._engine = LocalEngine(
            EngineConfig(
                model=config.model,
                limits=Limits(max_num_seqs=config.parallel),
                parallel=ParallelConfig(config.tensor, config.replicas),
            )
        )
        self.where, self.parallel = self._engine.where, self._engine.parallel

    def answer(self, prompt: str) -> str:
        """See `labelers.Labeler`."""
        completion = self._engine.complete(lambda tokenizer: self._request(prompt, tokenizer))
        if not completion.answer:
            raise NoAnswer("a completion without text", refused=True)
        return completion.answer

    def close(self) -> None:
        """See `inference.interface.Model`."""
        self._engine.close()

    def _request(self, prompt: str, tokenizer: Any) -> Request:
        prompt = encodable(prompt)
        thinking = ThinkingParams(mode="off", max_answer_tokens=self._config.max_tokens)
        ids = prompt_ids([{"role": "user", "content": prompt}], thinking, tokenizer)
        sampling = SamplingParams(temperature=self._config.temperature)
        return Request(ids, thinking, sampling, seed=seed_from_text(prompt))
