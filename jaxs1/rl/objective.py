"""The loss of a token that the policy chose, and of a micro-batch of them.

    r      exp(log p - old)
    clip   -min(r A, clamp(r, 1 - low, 1 + high) A), the first r at most cap   PPO, GRPO, DAPO
    cispo  -min(r, cap) A log p, without a gradient through r                  MiniMax-M1
    tis    times min(exp(old - sampled), tis_cap)                            where old is trainer's
    kl     + kl (exp(ref - log p) - (ref - log p) - 1)                         k3 (Schulman 2020)

Weights of tokens, from `batches.sequence_weights`, make it a mean.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxs1.model import transformer
from jaxs1.model.transformer import Transformer
from jaxs1.rl.batches import PolicyBatch, TokenColumns
from jaxs1.rl.config import ObjectiveConfig
from jaxs1.training.loss import Distribution, TokenMetrics, target_logprobs, token_loss
from jaxs1.training.step import Loss, batch_sharding

#: Bound of a log-ratio in the metric k3, where a single token could otherwise be all of the mean.
LOG_RATIO = 10.0


def token_objective(
    config: ObjectiveConfig, nll: jax.Array, entropy: jax.Array, columns: TokenColumns
) -> tuple[jax.Array, TokenMetrics]:
    """Loss and metrics of every token; an `Objective` once `config` is bound.

    Args:
        config: names the formula
        nll: negative log-probabilities of the choices
        entropy: entropies of the distributions that they were drawn from [nats]
        columns: see `TokenColumns`

    Returns:
        the loss, and sums: tokens, entropy, gap and k3 between decoding and training, clipped_low,
        clipped_high, and with old=trainer tis_cut, with a reference kl. Maximum: gap.
    """
    weights, advantages, sampled, old, reference = columns
    on = weights > 0
    old = sampled if old is None else old
    logprob = jnp.where(on, -nll, 0.0)  # what was not chosen may have no probability at all
    ratio = jnp.exp(jnp.where(on, logprob - old, 0.0))
    low, high = 1 - config.clip_low, 1 + config.clip_high
    capped = ratio if config.cap is None else jnp.minimum(ratio, config.cap)
    if config.surrogate == "clip":
        gain = jnp.minimum(capped * advantages, jnp.clip(ratio, low, high) * advantages)
    else:
        gain = lax.stop_gradient(capped) * advantages * logprob
    gap = jnp.where(on, jnp.abs(logprob - sampled), 0.0)
    drift = jnp.clip(jnp.where(on, logprob - sampled, 0.0), -LOG_RATIO, LOG_RATIO)
    sums = {
        "tokens": on,
        "entropy": on * entropy,
        "gap": gap,
        "k3": jnp.exp(drift) - 1 - drift,
        "clipped_low": on & (ratio < low) & (advantages < 0),
        "clipped_high": on & (ratio > high) & (advantages > 0),
    }
    if config.old == "trainer":
        weight = jnp.exp(jnp.where(on, old - sampled, 0.0))
        gain = gain * jnp.minimum(weight, config.tis_cap)
        sums["tis_cut"] = weight > config.tis_cap
    loss = -gain
    if reference is not None:
        ahead = jnp.where(on, reference - logprob, 0.0)
        kl = jnp.exp(ahead) - ahead - 1
        loss, sums["kl"] = loss + config.kl * kl, kl
    sums = {name: lax.stop_gradient(x.astype(jnp.float32)) for name, x in sums.items()}
    return jnp.where(on, loss * weights, 0.0), TokenMetrics(sums, {"gap": lax.stop_gradient(gap)})


def policy_loss(config: ObjectiveConfig, distribution: Distribution) -> Loss:
    """The loss of a micro-batch, for `make_train_step`."""

    def loss(
        model: Transformer, batch: PolicyBatch, *, chunk: int
    ) -> tuple[jax.Array, TokenMetrics]:
        return token_loss(
            model(batch.tokens, batch.positions, batch.segments),
            model.head(),
            batch.targets,
            batch.columns,
            objective=partial(token_objective, config),
            chunk=chunk,
            gated_BT=batch.gated,
            distribution=distribution,
            sequence_parts=model.rules.size("sequence"),
            row_parts=model.rules.size("rows"),
        )

    return loss


#: (parameters, frozen parameters or None, batch) -> log-probabilities of its targets [A, B, T].
Scorer = Callable[[Any, Any, PolicyBatch], jax.Array]


def make_scorer(model: Transformer, distribution: Distribution, *, chunk: int) -> Scorer:
    """Make the jitted function that scores a batch under some weights.

    Args:
        model: abstract
        distribution: as the targets were drawn
        chunk: number of tokens per device whose logits exist at once
    """

    def score(params: Any, frozen: Any, batch: PolicyBatch) -> jax.Array:
        weights = [params] if frozen is None else [frozen, params]
        network = transformer.with_parameters(model, *weights)

        def micro(batch: PolicyBatch) -> jax.Array:
            return target_logprobs(
                network(batch.tokens, batch.positions, batch.segments),
                network.head(),
                batch.targets,
                chunk=chunk,
                gated_BT=batch.gated,
                distribution=distribution,
                sequence_parts=model.rules.size("sequence"),
                row_parts=model.rules.size("rows"),
            )

        return lax.map(micro, batch)

    return jax.jit(score, out_shardings=batch_sharding(model.rules))
