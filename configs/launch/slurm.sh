#!/bin/bash
# Train a recipe on 2 nodes of 8 GPUs with SLURM, one process per GPU:
#
#   sbatch configs/launch/slurm.sh --config configs/s1_32b.yaml
#   sbatch --nodes 1 configs/launch/slurm.sh --config configs/s1_7b.yaml
#
# All arguments are passed to python -m jaxs1.train. Submit from the repository's root, on a file system
# that all nodes share: they must share the run directory. The processes find each other through srun's
# variables. On SIGTERM, sent before a preemption and 5 minutes before the time limit, the run saves a
# checkpoint and ends; requeued or submitted again, it continues from there.
#SBATCH --job-name=jaxs1
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=02:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=jaxs1-%j.log
set -euo pipefail

export XLA_PYTHON_CLIENT_MEM_FRACTION=0.92
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} # download model and data beforehand: compute nodes may have no internet access

# --kill-on-bad-exit: a process that fails ends the others immediately
srun --kill-on-bad-exit=1 --label \
  "${PYTHON:-python}" -u -m jaxs1.train "$@" --resume auto
