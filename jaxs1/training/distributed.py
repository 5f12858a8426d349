"""Several processes as one run: how they connect, what they agree on, how a lost one ends the run.

Every process runs the same program on its own devices and reads its own parts of weights and
batches; all processes must share the run directory. Only the main process prints, and writes
everything but arrays.

    srun python -m jaxs1.train ...                                    detected automatically
    python -m jaxs1.train ... --distributed.coordinator HOST:PORT \\
        --distributed.num_processes 2 --distributed.process_id 0      anywhere else
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxs1.config import UserError, one_line
from jaxs1.processes import find_process
from jaxs1.training.config import DistributedConfig

T = TypeVar("T")
R = TypeVar("R")

#: Messages of errors that are caused by another process.
_LOST = re.compile(
    r"gloo|nccl|coordination service|heartbeat|(connection|socket) (reset|closed)", re.I
)


@contextmanager
def session(config: DistributedConfig) -> Iterator[None]:
    """Connect to the other processes, run the block, and disconnect.

    An error ends this process immediately, without waiting for the others, so they notice: at
    their next collective operation, or after `heartbeat_timeout` seconds of silence. If a
    collective operation hangs, JAX ends them with a message that names the lost process.

    Raises:
        UserError: inconsistent settings, or the coordinator does not answer.
    """
    if not _connect(config):
        yield
        return
    name, delay = "this process", 0
    try:
        name = f"process {jax.process_index()} of {jax.process_count()}"
        delay = 2 if is_main_process() else 0
        yield
    except BaseException as error:
        _exit_immediately(name, error, delay)
    jax.distributed.shutdown()


def is_main_process() -> bool:
    """Whether this process prints and writes files."""
    return jax.process_index() == 0


def print_main(*words: Any) -> None:
    """Print in the main process only."""
    if is_main_process():
        print(*words, flush=True)


def broadcast_from_main(number: int) -> int:
    """The main process's number, e.g. because a shared file system may lag on other hosts."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def share(items: Sequence[T], work: Callable[[Sequence[T]], list[R]]) -> list[R]:
    """Let every process work on some of the items; all of them get all results, in order.

    Args:
        items: the same in all processes
        work: items to their results, which must be picklable
    """
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
        return work(items)
    results: list[Any] = [None] * len(items)
    for process, part in enumerate(_gather(work(items[index::count]))):
        results[process::count] = part
    return results


def _gather(value: Any) -> list[Any]:
    """The values of all processes, exchanged as arrays of bytes."""
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


class AgreedMax:
    """The largest of all processes' numbers, one call late; immediate with a single process.

    Every call starts an exchange and reads the previous one, so devices never wait for it.
    """

    def __init__(self) -> None:
        self._started: Any = 0
        self._mesh = Mesh(np.asarray(jax.devices()), ("all",))
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        self._largest = jax.jit(lambda numbers: numbers.max(), out_shardings=everywhere)

    def __call__(self, number: int) -> int:
        """Contribute a number >= 0; all processes must call equally often."""
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
    """Whether a launcher started several processes.

    Args:
        cluster: the recipe's distributed.cluster
        environment: environment variables
    """
    if cluster != "auto":
        return cluster == "jax"
    return find_process(environment).count > 1


def _connect(config: DistributedConfig) -> bool:
    """Connect to the other processes; False if this is the only one."""
    explicit = _explicit(config)
    if not explicit and not finds_many(config.cluster, os.environ):
        return False
    # the preemption service would swallow a SIGTERM that arrives before the first step
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**explicit, heartbeat_timeout_seconds=config.heartbeat_timeout)
    except (RuntimeError, ValueError) as error:
        where = config.coordinator or f"cluster={config.cluster}"
        raise UserError(
            f"distributed: cannot connect through {where} ({one_line(error)[:300]}); check that "
            "process 0 is running and its port is reachable, or give "
            "--distributed.coordinator HOST:PORT, num_processes and process_id"
        ) from None
    return True


def _explicit(config: DistributedConfig) -> dict[str, Any]:
    """Arguments of `jax.distributed.initialize` from explicit settings; empty without any."""
    given = (config.coordinator, config.num_processes, config.process_id)
    if given == (None, None, None):
        return {}
    if config.coordinator is None or config.num_processes is None or config.process_id is None:
        raise UserError(
            f"distributed: coordinator={given[0]}, num_processes={given[1]}, process_id={given[2]}:"
            " belong together; give all three, or none of them"
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


def _exit_immediately(name: str, error: BaseException, delay: int) -> NoReturn:
    """Report an error and end this process; a normal exit would wait for the others.

    The main process waits `delay` seconds: if all processes fail alike, the others must end before
    their coordinator, or JAX ends them with a stack trace.
    """
    if isinstance(error, UserError):
        print(f"error: {name}: {error}", file=sys.stderr)
    elif _LOST.search(str(error)):
        print(
            f"error: {name}: another process was lost, so the run ends ({one_line(error)[:200]}); "
            "see the first message of the other processes; restart all with --resume auto to "
            "continue from the newest checkpoint",
            file=sys.stderr,
        )
    else:
        traceback.print_exception(error)
        print(f"error: {name}: {type(error).__name__}, so the run ends", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(delay)
    os._exit(2 if isinstance(error, UserError) else 1)


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Yield a list that receives SIGTERM or SIGINT; a second Ctrl-C ends the run immediately."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        print_main(f"\n{signal.Signals(number).name}: finishing the step, then a checkpoint")

    previous = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
