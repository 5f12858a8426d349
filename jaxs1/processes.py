"""Several processes that a launcher started for one command: how many, and which one this is.

srun -n 4 python -m convert.to_hf SRC DST           found in the environment
python -m convert.to_hf SRC DST --num_processes 4 --process_id 0    anywhere else
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxs1.config import UserError

#: Environment variables of a SLURM step and of Open MPI: number of processes, this one's number.
LAUNCHERS = (
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
)
#: GKE's list of the hosts in a TPU slice, and this host's place in it.
HOSTS, HOST = "TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID"


@dataclass(frozen=True)
class Process:
    """One of several processes.

    Args:
        index: its number, from 0
        count: number of processes
    """

    index: int = 0
    count: int = 1


#: The only one.
ALONE = Process()


def find_process(environment: Mapping[str, str]) -> Process:
    """This process according to its launcher; the only one if there is none.

    Args:
        environment: environment variables
    """
    for count, index in LAUNCHERS:
        if int(environment.get(count, 1)) > 1:
            return Process(int(environment.get(index, 0)), int(environment[count]))
    hosts = environment.get(HOSTS, "").split(",")
    return Process(int(environment.get(HOST, 0)), len(hosts)) if len(hosts) > 1 else ALONE


def choose_process(
    num_processes: int | None, process_id: int | None, environment: Mapping[str, str]
) -> Process:
    """This process according to the settings, or else to its launcher.

    Args:
        num_processes: number of processes; None: see `find_process`
        process_id: number of this one, from 0; may be left out for a single process
        environment: environment variables

    Raises:
        UserError: the settings contradict each other.
    """
    if num_processes is None and process_id is None:
        return find_process(environment)
    if num_processes is None or (process_id is None and num_processes != 1):
        raise UserError(
            f"num_processes={num_processes}, process_id={process_id}: belong together; give both"
        )
    if not 0 <= (process_id or 0) < num_processes:
        raise UserError(
            f"process_id={process_id}: must be 0 to num_processes - 1={num_processes - 1}"
        )
    return Process(process_id or 0, num_processes)
