"""Rotary embedding (Su et al. 2021) and its scalings to contexts longer than those of pretraining.

The scalings equal those of transformers. Letters: `jaxs1/model/architecture.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Linear:
    """Position interpolation (Chen et al. 2023): all frequencies divided by `factor`."""

    factor: float

    #: Factor of cosine and sine.
    attention_factor = 1.0

    def scale(self, frequency: jax.Array, theta: float) -> jax.Array:
        """Frequencies of the scaled embedding [H/2]."""
        return frequency / self.factor


@dataclass(frozen=True)
class Llama3:
    """Llama 3.1's: long wavelengths divided by `factor`, short ones unchanged, a ramp between.

    Args:
        factor: of the long wavelengths
        low_freq_factor: wavelengths above original / this are long
        high_freq_factor: wavelengths below original / this are short
        original: context of pretraining [tokens]
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original: int

    attention_factor = 1.0

    def scale(self, frequency: jax.Array, theta: float) -> jax.Array:
        """Frequencies of the scaled embedding [H/2]."""
        low, high = self.low_freq_factor, self.high_freq_factor
        turns = self.original * frequency / (2 * math.pi)  # in the context of pretraining
        kept = jnp.clip((turns - low) / (high - low), 0, 1)
        return (1 - kept) * frequency / self.factor + kept * frequency


@dataclass(frozen=True)
class Yarn:
    """YaRN (Peng et al. 2023): as `Llama3`, with a ramp over the axes and warmer attention.

    Args:
        factor: of the slow axes
        original: context of pretraining [tokens]
        attention_factor: factor of cosine and sine
        beta_fast: axes that turn more often in the context of pretraining are kept
        beta_slow: axes that turn less often are divided by `factor`
        truncate: round the ends of the ramp to whole axes
    """

    factor: float
    original: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def scale(self, frequency: jax.Array, theta: float) -> jax.Array:
        """Frequencies of the scaled embedding [H/2]."""
        width = 2 * len(frequency)
        low, high = (self._axis(turns, width, theta) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        high += 0.001 * (low == high)
        slow = jnp.clip((jnp.arange(width // 2, dtype=jnp.float32) - low) / (high - low), 0, 1)
        return frequency / self.factor * slow + frequency * (1 - slow)

    def _axis(self, turns: float, width: int, theta: float) -> float:
        """The axis that turns so often in the context of pretraining."""
        return width * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(theta))


Scaling = Linear | Llama3 | Yarn


@dataclass(frozen=True)
class Rope:
    """A rotary embedding.

    Args:
        theta: base of the frequencies
        scaling: how they are scaled; None: not at all
    """

    theta: float
    scaling: Scaling | None = None

    def table(self, positions: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
        """Cosine and sine of every position, float32 [..., H/2]."""
        frequency = self.theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
        if self.scaling is not None:
            frequency = self.scaling.scale(frequency, self.theta)
        angle = positions.astype(jnp.float32)[..., None] * frequency
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        if self.scaling is not None and self.scaling.attention_factor != 1:
            cos, sin = cos * self.scaling.attention_factor, sin * self.scaling.attention_factor
        return cos, sin


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """The factor of cosine and sine that YaRN recommends (its section 3.4)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
