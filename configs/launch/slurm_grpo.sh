#!/bin/bash
# Reinforcement learning on 2 nodes of 8 GPUs with SLURM, one process per node: the devices of a process
# share the copies of the model that roll out.
#
#   sbatch configs/launch/slurm_grpo.sh --config configs/grpo_32b.yaml
#   sbatch --nodes 1 configs/launch/slurm_grpo.sh --config configs/grpo_7b.yaml
#
# All arguments are passed to python -m jaxs1.grpo; see slurm.sh for everything else.
#SBATCH --job-name=jaxs1-grpo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@900
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=jaxs1-grpo-%j.log
set -euo pipefail

export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7 # otherwise JAX gives a process of SLURM one GPU
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.92
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} # download model and data beforehand: compute nodes may have no internet access

# --kill-on-bad-exit: a process that fails ends the others immediately
srun --kill-on-bad-exit=1 --label \
  "${PYTHON:-python}" -u -m jaxs1.grpo "$@" --resume auto
