"""AdamW as used for s1, and Muon for training from scratch; both from optax."""

from __future__ import annotations

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from jaxs1.training.config import OptimizerConfig

#: Path ending of each matrix of a layer -> its input and output axes; axis 0 stacks the layers, and
#: axis 1 the experts of a mixture.
MUON_MATRICES: dict[str, MuonDimensionNumbers] = {
    "q/kernel": MuonDimensionNumbers(reduction_axis=1, output_axis=(2, 3)),
    "k/kernel": MuonDimensionNumbers(reduction_axis=1, output_axis=(2, 3)),
    "v/kernel": MuonDimensionNumbers(reduction_axis=1, output_axis=(2, 3)),
    "o/kernel": MuonDimensionNumbers(reduction_axis=(1, 2), output_axis=3),
    "gate/kernel": MuonDimensionNumbers(reduction_axis=1, output_axis=2),
    "up/kernel": MuonDimensionNumbers(reduction_axis=1, output_axis=2),
    "down/kernel": MuonDimensionNumbers(reduction_axis=1, output_axis=2),
    "mlp/gate": MuonDimensionNumbers(reduction_axis=2, output_axis=3),
    "mlp/up": MuonDimensionNumbers(reduction_axis=2, output_axis=3),
    "mlp/down": MuonDimensionNumbers(reduction_axis=2, output_axis=3),
}


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warmup from 0, then cosine decay to `min_lr_ratio`.

    Equals transformers' `get_cosine_schedule_with_warmup`, which was used for s1.
    """
    warmup = round(config.warmup_ratio * steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=config.learning_rate * config.min_lr_ratio,
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip the global norm, then AdamW or Muon. Norms and biases are not decayed."""
    schedule = make_schedule(config, steps)
    if config.name == "adamw":
        update = optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=_is_matrix,
        )
    else:
        update = optax.contrib.muon(
            schedule,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=config.weight_decay,
            weight_decay_mask=_is_matrix,
            muon_weight_dimension_numbers=_muon_dimensions,
        )
    clip = (
        optax.identity()
        if config.max_grad_norm is None
        else optax.clip_by_global_norm(config.max_grad_norm)
    )
    return optax.chain(clip, update)


def _path(keys: Any) -> str:
    return "/".join(str(key.key) for key in keys)


def _is_matrix(params: Any) -> Any:
    return jax.tree.map_with_path(
        lambda keys, _: not _path(keys).endswith(("scale", "bias")), params
    )


def _muon_dimensions(params: Any) -> Any:
    def dimensions(keys: Any, _: Any) -> MuonDimensionNumbers | None:
        return next((d for end, d in MUON_MATRICES.items() if _path(keys).endswith(end)), None)

    return jax.tree.map_with_path(dimensions, params)
