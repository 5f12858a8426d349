"""Checkpoints of a run: RUN/checkpoints/STEP with parameters, optimizer state and settings.

A run that trains adapters saves them as the item `adapter` instead of `params`; the base weights
stay where the recipe's `model` says.

Orbax writes in the background under a temporary name and renames a checkpoint once it is complete,
so a killed run leaves the last complete one. `params` has the layout that `convert` reads and
writes, so every checkpoint is also a model that any command loads. The position in the data needs
no saved state: batch n is a function of n.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import logging
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxs1.config import UserError
from jaxs1.storage import changed_settings, explain
from jaxs1.training.config import CheckpointConfig
from jaxs1.training.step import TrainState, put_scalar

#: Settings that may change when a run is resumed; all others would change the result.
FREE_TO_CHANGE = (
    "output",
    "resume",
    "export_dtype",
    "mesh",
    "compute",
    "checkpoint",
    "log",
    "distributed",
)

#: Arrays are written in chunks of at most this many bytes, so a reader such as the conversion needs
#: little memory: stacked ones layer by layer, and others in bands, of which a piece reads a few.
STACKED_BYTES, OTHER_BYTES = 128 * 2**20, 8 * 2**20


def latest_step(run: Path) -> int:
    """Step of a run's newest complete checkpoint; 0 if there is none."""
    steps = (path.name for path in (run / "checkpoints").glob("*"))
    return max((int(name) for name in steps if name.isdecimal()), default=0)


@functools.cache  # once a process
def quiet_orbax() -> None:
    """Silence warnings of intended behaviour, and errors of threads that Orbax raises as well."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # tasks that fail beside the one whose error Orbax raises
    logging.getLogger("asyncio").addFilter(lambda x: not (x.exc_info and _known(x.exc_info[1])))
    sys.unraisablehook = _unless_known(sys.unraisablehook)
    threading.excepthook = _unless_known(threading.excepthook)


def _unless_known(shown: Callable[[Any], Any]) -> Callable[[Any], None]:
    def hook(event: Any) -> None:
        if not _known(event.exc_value):
            shown(event)

    return hook


def _known(error: BaseException | None) -> bool:
    """Whether TensorStore failed to write, or its loop was closed after that."""
    return str(error) == "Event loop is closed" or "os_error_code=" in str(error)


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
        run: the run directory
        config: how many to keep
    """

    def __init__(self, run: Path, config: CheckpointConfig):
        self.folder = (run / "checkpoints").resolve()
        self.manager = ocp.CheckpointManager(
            self.folder,
            item_handlers={
                "params": ocp.PyTreeCheckpointHandler(use_ocdbt=False),
                "adapter": ocp.PyTreeCheckpointHandler(use_ocdbt=False),
                "optimizer": ocp.PyTreeCheckpointHandler(use_ocdbt=False),
                "meta": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                max_to_keep=config.max_to_keep,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
            ),
        )

    def save(self, state: TrainState, config: Any) -> None:
        """Start writing a checkpoint; returns as soon as the state may be overwritten.

        Args:
            state: state after a step
            config: settings of the run, a dataclass

        Raises:
            UserError: the disk has no room for it; the one before could not be written.
        """
        step = int(state.step)
        if step == self.manager.latest_step():
            return
        meta = {"step": step, "config": dataclasses.asdict(config)}
        with self._explained():
            self._check_space(_nbytes(state.params) + _nbytes(state.opt_state))
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    optimizer=_save_args(_by_name(state.opt_state)),
                    meta=ocp.args.JsonSave(meta),
                    **{_item(state): _save_args(state.params)},
                ),
            )

    def restore(self, step: int, like: TrainState, config: Any) -> TrainState:
        """Restore the state at a step.

        Args:
            step: step to restore
            like: arrays, or shapes, with the dtypes and shardings to restore
            config: current settings

        Raises:
            UserError: settings that would change the result differ from the saved ones.
        """
        saved = self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        _require_same(saved["meta"]["config"], config, self.folder.parent)
        opt_state = _by_name(like.opt_state)
        restored = self.manager.restore(
            step,
            args=ocp.args.Composite(
                optimizer=_restore_args(opt_state),
                **{_item(like): _restore_args(like.params)},
            ),
        )
        treedef = jax.tree.structure(like.opt_state)
        leaves = [restored["optimizer"][name] for name in opt_state]
        return TrainState(
            put_scalar(step, like.step.sharding),
            restored[_item(like)],
            jax.tree.unflatten(treedef, leaves),
            like.frozen,
        )

    def close(self) -> None:
        """Wait until everything is on disk; raises `UserError` if that fails."""
        with self._explained():
            self.manager.wait_until_finished()
            self.manager.close()

    def _check_space(self, nbytes: int) -> None:
        """Fail before anything is written."""
        free = shutil.disk_usage(self.folder).free
        if nbytes > free:
            raise OSError(errno.ENOSPC, f"needs {nbytes / 1e9:.1f} GB, has {free / 1e9:.1f} GB")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn errors into one line; those of TensorStore are no `OSError`."""
        try:
            yield
        except (OSError, ValueError) as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))
            if code:
                error = OSError(int(code[1]), os.strerror(int(code[1])))
            if not isinstance(error, OSError):
                raise
            kept = latest_step(self.folder.parent)
            note = f"; the checkpoint of step {kept} is kept" if kept else ""
            raise UserError(explain(error, self.folder) + note) from None


def _nbytes(tree: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def _item(state: TrainState) -> str:
    return "params" if state.frozen is None else "adapter"


def _by_name(opt_state: Any) -> dict[str, Any]:
    """The optimizer's state as a flat dictionary, independent of optax's nesting."""
    leaves = jax.tree.leaves_with_path(opt_state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _save_args(tree: Any) -> Any:
    def save_args(path: Any, x: Any) -> ocp.SaveArgs:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if "layers" in name.split("."):
            return ocp.SaveArgs(chunk_byte_size=STACKED_BYTES, shard_axes=(0,))
        # along an axis of shard_axes, every index becomes a file
        return ocp.SaveArgs(chunk_byte_size=OTHER_BYTES)

    return ocp.args.PyTreeSave(tree, save_args=jax.tree_util.tree_map_with_path(save_args, tree))


def _restore_args(tree: Any) -> Any:
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )
    return ocp.args.PyTreeRestore(
        item=shapes, restore_args=ocp.checkpoint_utils.construct_restore_args(shapes)
    )


def _require_same(saved: dict[str, Any], config: Any, run: Path) -> None:
    """Refuse to resume with other settings; `saved` may use the names of earlier versions."""
    current = dataclasses.asdict(config)
    if "preset" in current["data"]:  # runs of versions without this setting
        saved = saved | {"data": {"preset": "auto", **saved.get("data", {})}}
    changed = changed_settings(saved, current)
    words = [
        f"{name} ({old} then, {new} now)"
        for name, (old, new) in changed.items()
        if name.split(".")[0] not in FREE_TO_CHANGE
    ]
    if words:
        raise UserError(
            f"resume=auto: {run} was trained with other settings: {'; '.join(words)}; use the "
            "same, or start a new run with --model and another --output"
        )
