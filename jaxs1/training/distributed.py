"""Many processes as one run: how they join, what they agree on, and how a lost one ends the others.

Every process runs the same program on its own devices and reads its own parts of weights and
batches; the run directory must be one that all of them see. The first process alone prints and
writes what is not an array.

    srun python -m jaxs1.train ...                                    joins by itself
    python -m jaxs1.train ... --distributed.coordinator HOST:PORT \\
        --distributed.num_processes 2 --distributed.process_id 0      anywhere else
"""

from __future__ import annotations

import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxs1.config import DistributedConfig, UserError, one_line

#: The variables in which launchers that JAX knows say how many processes they started.
COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
#: GKE's list of the hosts of a TPU slice.
HOSTS = "TPU_WORKER_HOSTNAMES"

#: What an error says that has its cause in another process.
_LOST = re.compile(
    r"gloo|nccl|coordination service|heartbeat|(connection|socket) (reset|closed)", re.I
)


@contextmanager
def session(config: DistributedConfig) -> Iterator[None]:
    """All that a process does between joining the others and leaving them.

    An error in one process ends this process at once, without waiting for the others, so that they
    notice: at their next exchange, or after `heartbeat_timeout` seconds of silence. On an exchange that
    hangs it is JAX itself that ends them, with a message that names the lost process.

    Raises:
        UserError: settings that do not fit together, or nobody answers.
    """
    if not _join(config):
        yield
        return
    here, patience = "this process", 0
    try:
        here = f"process {jax.process_index()} of {jax.process_count()}"
        patience = 2 if is_first() else 0
        yield
    except BaseException as error:
        _leave_at_once(here, error, patience)
    jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return jax.process_index() == 0


def say(*words: Any) -> None:
    """Print, in the first process only."""
    if is_first():
        print(*words, flush=True)


def from_first(number: int) -> int:
    """The first process's number: file systems may show the others something older."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


class Agreement:
    """The largest of all processes' numbers, of the call before; of one process, at once.

    Every call starts an exchange and reads the one before, so that no device waits for it.
    """

    def __init__(self) -> None:
        self._started: Any = 0
        self._mesh = Mesh(np.asarray(jax.devices()), ("all",))
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        self._largest = jax.jit(lambda numbers: numbers.max(), out_shardings=everywhere)

    def __call__(self, number: int) -> int:
        """Give this process's number, at least 0; all processes call equally often."""
        if jax.process_count() == 1:
            return number
        agreed = int(self._started)
        layout = NamedSharding(self._mesh, PartitionSpec("all"))
        numbers = jax.make_array_from_callback(
            (self._mesh.size,), layout, lambda _: np.full(1, number, np.int32)
        )
        self._started = self._largest(numbers)
        return agreed


def finds_many(cluster: str, environment: Mapping[str, str]) -> bool:
    """Whether there are other processes to join, by the variables that launchers set.

    Args:
        cluster: recipe's distributed.cluster
        environment: variables
    """
    if cluster != "auto":
        return cluster == "jax"
    counts = [int(environment.get(name, 1)) for name in COUNTS]
    return max(counts) > 1 or "," in environment.get(HOSTS, "")


def _join(config: DistributedConfig) -> bool:
    """Join the other processes; False where this is the only one."""
    explicit = _explicit(config)
    if not explicit and not finds_many(config.cluster, os.environ):
        return False
    # it would catch SIGTERM, which then ended nothing before the first step
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**explicit, heartbeat_timeout_seconds=config.heartbeat_timeout)
    except (RuntimeError, ValueError) as error:
        where = config.coordinator or f"cluster={config.cluster}"
        raise UserError(
            f"distributed: cannot join by {where} ({one_line(error)[:300]}); check that process 0 "
            "runs and that its port can be reached, or give --distributed.coordinator HOST:PORT, "
            "num_processes and process_id"
        ) from None
    return True


def _explicit(config: DistributedConfig) -> dict[str, Any]:
    """Arguments of `jax.distributed.initialize` where the user gave them, else none."""
    given = (config.coordinator, config.num_processes, config.process_id)
    if given == (None, None, None):
        return {}
    if config.coordinator is None or config.num_processes is None or config.process_id is None:
        raise UserError(
            f"distributed: coordinator={given[0]}, num_processes={given[1]}, process_id={given[2]}:"
            " go together; give all three, or none of them"
        )
    if not re.fullmatch(r".+:\d+", config.coordinator):
        raise UserError(
            f"distributed.coordinator={config.coordinator}: must be HOST:PORT of process 0"
        )
    if not 0 <= config.process_id < config.num_processes:
        raise UserError(
            f"distributed.process_id={config.process_id}: must be 0 to num_processes - 1="
            f"{config.num_processes - 1}"
        )
    return {
        "coordinator_address": config.coordinator,
        "num_processes": config.num_processes,
        "process_id": config.process_id,
        "cluster_detection_method": "deactivate",
    }


def _leave_at_once(here: str, error: BaseException, patience: int) -> NoReturn:
    """Say what happened and end this process; its ordinary end would wait for the others.

    The first one waits some seconds: where all fail alike, the others end before their coordinator
    does, or JAX ends them with a stack trace.
    """
    if isinstance(error, UserError):
        print(f"error: {here}: {error}", file=sys.stderr)
    elif _LOST.search(str(error)):
        print(
            f"error: {here}: another process was lost, so the run ends ({one_line(error)[:200]}); "
            "look for the first message among the others; start all again with --resume auto to "
            "go on from the newest checkpoint",
            file=sys.stderr,
        )
    else:
        traceback.print_exception(error)
        print(f"error: {here}: {type(error).__name__}, so the run ends", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(patience)
    os._exit(2 if isinstance(error, UserError) else 1)
