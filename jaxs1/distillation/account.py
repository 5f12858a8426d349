"""Tokens and money: exact from what the teacher reports, and never beyond a limit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from jaxs1.distillation.answers import Key, Stored
from jaxs1.distillation.config import PriceConfig
from jaxs1.distillation.teachers import Job

MILLION = 1_000_000
#: Tokens that a chat template and a system prompt of the provider may add to a prompt.
TEMPLATE_TOKENS = 256


@dataclass
class Account:
    """Tokens used, and reserved for requests that run.

    Args:
        price: Prices
        max_tokens: Maximum length of an answer [tokens]
        max_cost: Limit of `cost` [dollars]; None: no limit
        prompt_tokens: Tokens of all prompts that were answered
        completion_tokens: Tokens of all answers
    """

    price: PriceConfig
    max_tokens: int
    max_cost: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    _reserved: dict[Key, tuple[int, int]] = field(default_factory=dict)

    def add(self, stored: Stored) -> None:
        """Count an answer, and release what was reserved for it."""
        self.prompt_tokens += stored.prompt_tokens
        self.completion_tokens += stored.completion_tokens

    def release(self, key: Key) -> None:
        """Release what was reserved for a request that has ended."""
        self._reserved.pop(key, None)

    def may_start(self, job: Job) -> bool:
        """Whether the cost stays within its limit however long all answers become; reserves it.

        A token has at least one byte, so the bytes of a prompt bound its tokens.
        """
        if self.max_cost is None:
            return True
        prompt = TEMPLATE_TOKENS + sum(len(m["content"].encode()) for m in job.messages)
        most = [(prompt, self.max_tokens), *self._reserved.values()]
        if self.cost + self._cost_of(most) > self.max_cost:
            return False
        self._reserved[job.key] = most[0]
        return True

    @property
    def cost(self) -> float:
        """Cost of all answers [dollars]; a function of the token counts, not of their order."""
        return self._cost_of([(self.prompt_tokens, self.completion_tokens)])

    def _cost_of(self, tokens: Iterable[tuple[int, int]]) -> float:
        prompt, completion = map(sum, zip(*tokens, strict=True))
        return (prompt * self.price.input + completion * self.price.output) / MILLION
