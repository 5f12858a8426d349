"""Our own engine as a model: one thread steps it while many threads wait for completions.

The engine is loaded with the first prompt and released by `close`, so several models can take turns
on the same devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxs1.config import UserError, one_line
from jaxs1.decoding.async_engine import AsyncEngine, EngineClosed
from jaxs1.decoding.base_engine import BaseEngine
from jaxs1.decoding.loading import EngineConfig, load_engine
from jaxs1.decoding.outputs import Completion
from jaxs1.decoding.params import Request
from jaxs1.inference.interface import NoAnswer


class LocalEngine:
    """Completes prompts; may be used by several threads.

    Args:
        config: Model and engine
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self.where = f"the local engine with {config.model}"
        # as many again wait, so the batch stays full while answers are graded
        self.parallel = 2 * config.limits.max_num_seqs * config.parallel.replicas
        self._engine = AsyncEngine(lambda: self._open())

    def complete(self, make_request: Callable[[Any], Request]) -> Completion:
        """The completion of one request.

        Args:
            make_request: From the tokenizer to a request for one completion

        Raises:
            NoAnswer: the engine refused the request, or failed.
            UserError: the engine cannot be loaded.
        """
        answer = self._engine.submit(make_request)
        try:
            (completion,) = answer.result()
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from None
        except EngineClosed:
            raise NoAnswer("interrupted") from None
        except Exception as error:  # whatever the device says
            raise NoAnswer(one_line(error)[:200] or type(error).__name__, fatal=True) from error
        if completion.error is not None:
            raise NoAnswer(completion.error, refused=True)
        return completion

    def close(self) -> None:
        """Release the engine; pending calls of `complete` raise `NoAnswer`."""
        self._engine.close()

    def _open(self) -> BaseEngine:
        loaded = load_engine(self._config)
        print(loaded.description, flush=True)
        return loaded.engine
