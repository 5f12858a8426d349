"""A labeler at an OpenAI-compatible endpoint."""

from __future__ import annotations

from typing import Any

from jaxs1.curation.labelers import ModelConfig
from jaxs1.inference.openai_client import OpenAIClient


class OpenAIModel:
    """See `labelers.Labeler`.

    Args:
        config: Checked settings with a url
    """

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._client = OpenAIClient(config)
        self.parallel = config.parallel
        #: Without the URL: the same model may move.
        self.identity = f"{config.model} {config.temperature} {config.max_tokens}"
        self.where = f"{config.model} at {config.url}"

    def answer(self, prompt: str) -> str:
        """See `labelers.Labeler`; raises `NoAnswer` once all retries have failed."""
        config = self._config
        body = {
            "model": config.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
        }
        return self._client.chat(body, _text)

    def close(self) -> None:
        """See `inference.interface.Model`; ends all retries."""
        self._client.close()


def _text(reply: Any) -> str:
    """The text of a completion; raises `ValueError` if there is none."""
    text = reply["choices"][0]["message"]["content"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError("a completion without text")
    return text.strip()
