#!/usr/bin/env bash
# Train on the GPUs of a SLURM cluster, one process a GPU; JAX finds its peers in SLURM's own environment.
# SLURM queues a preempted job again, and it resumes; after the time limit the same command again does.
#
#   launch/slurm.sh [--dry-run] CONFIG WORKDIR [--config.FIELD=VALUE...]
#   NODES=4 GPUS=8 PARTITION=a3 launch/slurm.sh configs/gemma2_2b_main.py /shared/runs/gemma2_2b_main
#
# Beforehand, once, on a shared file system: make test, then .venv/bin/python -m pip install "jax[cuda12]==0.12.0.1"
set -euo pipefail
cd "$(dirname "$0")/.."

show() {
    for word; do [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] && printf '%s ' "$word" || printf '%s ' "${word@Q}"; done
    echo
}
run() { show + "$@" >&2 && "$@"; }
if [[ "${1:-}" == --dry-run ]]; then
    run() { show "$@"; }
    shift
elif [[ ! -x .venv/bin/d2l ]]; then
    echo "slurm.sh: there is no .venv yet: run \`make test\` once, it sets it up." >&2
    exit 2
fi
if (($# < 2)) || [[ "$2" == -* ]]; then
    echo "usage: launch/slurm.sh [--dry-run] CONFIG WORKDIR [--config.FIELD=VALUE...]" >&2
    exit 2
fi
CONFIG=$1 WORKDIR=$2
shift 2
NAME=${NAME:-d2l}
NODES=${NODES:-1}
GPUS=${GPUS:-8} # of a node
CPUS=${CPUS:-8} # of a process
HOURS=${HOURS:-24}
PARTITION=${PARTITION:-}

# srun gets SIGTERM 60 s before the time limit: a checkpoint is saved, and the job ends well. `singleton` makes a second
# submission wait for the first, so that two jobs never write one workdir.
TRAIN=$(printf '%q ' srun --kill-on-bad-exit=1 .venv/bin/d2l train --config "$CONFIG" --workdir "$WORKDIR" "$@")
run sbatch --job-name="$NAME" --nodes="$NODES" --ntasks-per-node="$GPUS" --gpus-per-node="$GPUS" \
    --cpus-per-task="$CPUS" --time="$HOURS:00:00" ${PARTITION:+--partition="$PARTITION"} \
    --requeue --signal=TERM@60 --dependency=singleton --open-mode=append --output="$NAME-%j.log" \
    --wrap="exec ${TRAIN% }"
