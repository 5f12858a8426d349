"""One optimizer step as one compiled function: state and batch in, state and metrics out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxs1.model import transformer
from jaxs1.model.sharding import ShardingRules
from jaxs1.model.transformer import Transformer
from jaxs1.training.loss import NO_METRICS, TokenMetrics, empty_metrics, supervised_loss

T = TypeVar("T")


class TrainState(NamedTuple):
    """Everything a step reads and a run keeps: a pytree of arrays, or of their shapes or shardings.

    Args:
        step: int32 [], number of finished steps
        params: trained parameters: the weights, or adapters
        opt_state: optimizer state of `params`
        frozen: weights under adapters, which no step changes; otherwise None
    """

    step: Any
    params: optax.Params
    opt_state: optax.OptState
    frozen: optax.Params | None = None


class StepMetrics(NamedTuple):
    """Metrics of one step.

    Args:
        loss: float32 [], mean loss of the step
        grad_norm: float32 [], global norm of the gradient before clipping
        tokens: further metrics, of losses that have any
    """

    loss: jax.Array
    grad_norm: jax.Array
    tokens: TokenMetrics = NO_METRICS


#: A step; the batch is a NamedTuple of arrays [A, B, T], such as `Batch`.
TrainStep = Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]
#: (model with parameters, micro-batch [B, T], chunk=...) -> loss and metrics.
Loss = Callable[..., tuple[jax.Array, TokenMetrics]]


def state_shardings(model: Transformer, optimizer: optax.GradientTransformation) -> TrainState:
    """Shardings in the place of the state's arrays; a moment has its parameter's sharding."""
    kind = transformer.trained(model)
    shardings = transformer.shardings(model, kind)
    frozen = None if kind is nnx.Param else transformer.shardings(model)
    replicated = NamedSharding(model.rules.mesh, PartitionSpec())
    by_path = {_dict_keys(path): s for path, s in jax.tree.leaves_with_path(shardings)}

    def like_parameter(path: Any, _: Any) -> NamedSharding:
        """A moment's path ends in its parameter's path; a counter's does not."""
        keys = _dict_keys(path)
        endings = (keys[start:] for start in range(len(keys)))
        return next((by_path[ending] for ending in endings if ending in by_path), replicated)

    opt_state = jax.tree.map_with_path(
        like_parameter, jax.eval_shape(optimizer.init, transformer.parameters(model, kind))
    )
    return TrainState(replicated, shardings, opt_state, frozen)


def abstract_state(model: Transformer, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes, dtypes and shardings of the state, without allocating it."""
    shardings = state_shardings(model, optimizer)
    trained = transformer.parameters(model, transformer.trained(model))
    shapes = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32),
        trained,
        jax.eval_shape(optimizer.init, trained),
        None if shardings.frozen is None else transformer.parameters(model),
    )
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _dict_keys(path: Any) -> tuple[str, ...]:
    return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))


def init_state(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    params: optax.Params,
    frozen: optax.Params | None = None,
) -> TrainState:
    """The state before the first step; see `TrainState`."""
    shardings = state_shardings(model, optimizer)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    return TrainState(put_scalar(0, shardings.step), params, opt_state, frozen)


def put_scalar(number: int, sharding: NamedSharding) -> jax.Array:
    """An int32 scalar on the devices of all processes."""
    return jax.make_array_from_callback((), sharding, lambda _: np.int32(number))


def batch_sharding(rules: ShardingRules) -> NamedSharding:
    """Sharding of a batch's [A, B, T] arrays."""
    return rules.sharding((None, "rows", "sequence"))


def put_batch(batch: T, rules: ShardingRules) -> T:
    """Move a batch to the devices; with several processes each provides its own part."""
    sharding = batch_sharding(rules)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__), batch
    )


def make_train_step(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    *,
    loss_chunk: int,
    loss: Loss = supervised_loss,
) -> TrainStep:
    """Make the jitted step. It donates the state: its buffers become the new state's.

    Args:
        model: abstract; its parameters come from the state
        optimizer: from `make_optimizer`
        loss_chunk: see `loss.supervised_loss`
        loss: loss of a micro-batch
    """
    shardings = state_shardings(model, optimizer)
    replicated = shardings.step

    def micro_loss(params: Any, frozen: Any, micro: Any) -> tuple[jax.Array, TokenMetrics]:
        weights = [params] if frozen is None else [frozen, params]
        return loss(transformer.with_parameters(model, *weights), micro, chunk=loss_chunk)

    gradient = jax.value_and_grad(micro_loss, has_aux=True)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        first = jax.tree.map(lambda x: x[0], batch)
        if batch.tokens.shape[0] == 1:
            (value, tokens), grads = gradient(state.params, state.frozen, first)
        else:

            def add(total: Any, micro: Any) -> tuple[Any, None]:
                value, tokens, grads = total
                (new, seen), more = gradient(state.params, state.frozen, micro)
                return (value + new, tokens.merge(seen), jax.tree.map(jnp.add, grads, more)), None

            _, seen = jax.eval_shape(micro_loss, state.params, state.frozen, first)
            zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), state.params)
            start = (jnp.zeros((), jnp.float32), empty_metrics(seen), zeros)
            (value, tokens, grads), _ = lax.scan(add, start, batch)
        grads = lax.with_sharding_constraint(grads, shardings.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        after = TrainState(state.step + 1, params, opt_state, state.frozen)
        return after, StepMetrics(value, optax.tree.norm(grads), tokens)

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(model.rules)),
        out_shardings=(shardings, StepMetrics(replicated, replicated, replicated)),
    )
