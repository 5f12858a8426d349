"""Which of several processes this one is: as a launcher or the settings say."""

import pytest

from jaxs1.config import UserError
from jaxs1.processes import Process, choose_process, find_process


@pytest.mark.parametrize(
    ("environment", "process"),
    [
        ({}, (0, 1)),
        ({"SLURM_NTASKS": "16", "SLURM_PROCID": "0"}, (0, 1)),  # sbatch, outside of a step
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, (0, 1)),
        ({"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "15"}, (15, 16)),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, (1, 2)),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, (0, 1)),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c", "TPU_WORKER_ID": "2"}, (2, 3)),
    ],
)
def test_what_launchers_say(environment, process):
    assert find_process(environment) == Process(*process)
    assert choose_process(None, None, environment) == Process(*process)
    assert choose_process(4, 3, environment) == Process(3, 4)
    assert choose_process(1, None, environment) == Process()


@pytest.mark.parametrize("given", [(2, None), (None, 0), (2, 2), (2, -1), (0, 0)])
def test_settings_that_contradict_each_other(given):
    with pytest.raises(UserError, match="process_id="):
        choose_process(*given, {})
