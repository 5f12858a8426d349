#!/bin/bash
# Serve a model on one node of 8 GPUs with SLURM, one server per GPU on ports 8000 to 8007:
#
#   JAXS1_API_KEY=... sbatch configs/launch/serve_slurm.sh --model DIR
#   JAXS1_API_KEY=... sbatch --ntasks-per-node 1 --gpus-per-task 8 configs/launch/serve_slurm.sh \
#     --model DIR --parallel.tensor 8                          (a model that needs all of them)
#
# All arguments are passed to python -m jaxs1.serve. Each server says in the log where it listens; a
# router in front of them is described in docs/serving.md. On SIGTERM, sent two minutes before the
# time limit, running requests are completed.
#SBATCH --job-name=jaxs1-serve
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --output=jaxs1-serve-%j.log
set -euo pipefail

export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} # download the model beforehand: compute nodes may have no internet access
export PYTHON=${PYTHON:-python}

# a server that fails ends alone: the others go on answering
srun --kill-on-bad-exit=0 --label bash -c \
  'exec "$PYTHON" -u -m jaxs1.serve --host 0.0.0.0 --port $((8000 + SLURM_LOCALID)) "$@"' jaxs1 "$@"
