"""Language models that label questions: the settings that name one, and what they all implement.

This file does not know what the prompts and answers mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from jaxs1.config import UserError
from jaxs1.inference.interface import Model
from jaxs1.inference.openai_client import EndpointConfig


class Labeler(Model[str, str], Protocol):
    """A model whose answers are stored; they come without surrounding white space."""

    @property
    def identity(self) -> str:
        """Part of the names of caches: differs wherever answers would differ."""

    @property
    def where(self) -> str:
        """Name of the model, for messages."""


@dataclass(frozen=True)
class ModelConfig(EndpointConfig):
    """A model that answers questions: at an OpenAI-compatible endpoint, or in the local engine.

    Args:
        model: Name of the model at the endpoint; for the local engine a Hugging Face folder, a hub
            id, a converted checkpoint or a training run, the same on all machines whose caches are
            merged; empty for none
        temperature: Sampling temperature (s1: 0.05)
        max_tokens: Maximum length of an answer [tokens]
        parallel: Number of concurrent requests; batch size of the local engine
        tensor: Number of devices that share a copy of the model (local engine only)
        replicas: Number of copies of the model (local engine only)
    """

    model: str = ""
    temperature: float = 0.05
    max_tokens: int = 8192
    tensor: int = 1
    replicas: int = 1

    def check(self, setting: str) -> None:
        """Reject impossible settings; `setting` is the field that holds this model."""
        super().check(setting)
        self.check_key(setting)
        if self.url and not self.model:
            raise UserError(f"{setting}.model='': {self.url} needs the name of the model; give it")
        for name in ("max_tokens", "tensor", "replicas"):
            if not getattr(self, name) > 0:
                raise UserError(f"{setting}.{name}={getattr(self, name)}: must be positive")
        if self.temperature < 0:
            raise UserError(f"{setting}.temperature={self.temperature}: must be 0 or more")
