"""Computes shards of the features as Ray tasks; the only file that uses Ray."""

from __future__ import annotations

from collections.abc import Callable

from jaxs1.config import UserError


def run_on_ray(task: Callable[[str], object], shards: int, gpus: int) -> None:
    """Run `task("i/n")` for i from 1 to n on a Ray cluster, or on this machine without one.

    Args:
        task: Computes one shard
        shards: Number of shards
        gpus: GPUs that a task needs, if the cluster has any

    Raises:
        UserError: Ray is not installed, or a task raised a UserError.
    """
    try:
        import ray
    except ImportError:
        raise UserError(f"ray={shards}: needs the package ray; pip install ray") from None
    ray.init(ignore_reinit_error=True)
    try:
        has_gpus = "GPU" in ray.cluster_resources()
        remote = ray.remote(num_gpus=gpus if has_gpus else 0, max_retries=0)(task)
        ray.get([remote.remote(f"{i}/{shards}") for i in range(1, shards + 1)])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    finally:
        ray.shutdown()
