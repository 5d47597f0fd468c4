#!/usr/bin/env bash
# Train on a Cloud TPU VM slice: creates it where there is none, copies this commit, runs `d2l train` on every host.
# The same command again goes on from the latest checkpoint, on a new slice where the old one was preempted.
#
#   launch/tpu_vm.sh [--dry-run] CONFIG WORKDIR [--config.FIELD=VALUE...]
#   TYPE=v5p-16 VERSION=v2-alpha-tpuv5 ZONE=us-east5-a launch/tpu_vm.sh configs/gemma2_2b_main.py gs://BUCKET/main
#
# Gated targets (Gemma) are fetched with the hub token of this machine. The slice stays afterwards:
#   gcloud compute tpus tpu-vm delete NAME --zone=ZONE
set -euo pipefail
cd "$(dirname "$0")/.."

show() {
    for word; do [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] && printf '%s ' "$word" || printf '%s ' "${word@Q}"; done
    echo
}
run() { show + "$@" >&2 && "$@"; }
if [[ "${1:-}" == --dry-run ]]; then
    run() { show "$@"; }
    DRY_RUN=1
    shift
fi
if (($# < 2)) || [[ "$2" != gs://* ]]; then
    echo "usage: launch/tpu_vm.sh [--dry-run] CONFIG gs://BUCKET/WORKDIR [--config.FIELD=VALUE...]" >&2
    exit 2
fi
CONFIG=$1 WORKDIR=$2
shift 2
NAME=${NAME:-d2l}
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-16}
VERSION=${VERSION:-v2-alpha-tpuv5-lite}
SPOT=${SPOT-1} # empty: on demand

tpu() {
    local verb=$1
    shift
    run gcloud compute tpus tpu-vm "$verb" "$@" --zone="$ZONE"
}

# ---------------------------------------------------------------- a slice
STATE=ABSENT
if [[ -z "${DRY_RUN:-}" ]]; then
    gcloud compute tpus tpu-vm list --zone="$ZONE" --limit=1 >/dev/null # no credentials: it says so and ends
    STATE=$(gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" --format='value(state)' 2>/dev/null) ||
        STATE=ABSENT
fi
if [[ "$STATE" == PREEMPTED || "$STATE" == TERMINATED ]]; then
    tpu delete "$NAME" --quiet
    STATE=ABSENT
fi
if [[ "$STATE" == ABSENT ]]; then
    tpu create "$NAME" --accelerator-type="$TYPE" --version="$VERSION" ${SPOT:+--spot}
fi

# ---------------------------------------------------------------- this commit on every host
ARCHIVE=runs/tpu_vm/$NAME.tar.gz TOKEN=${HF_HOME:-$HOME/.cache/huggingface}/token
run mkdir -p runs/tpu_vm
run git archive --prefix=d2l/ --output="$ARCHIVE" HEAD
tpu scp "$ARCHIVE" "$NAME:d2l.tar.gz" --worker=all
if [[ -f "$TOKEN" ]]; then
    tpu scp "$TOKEN" "$NAME:d2l.token" --worker=all
fi
SETUP='tar -xzf d2l.tar.gz && cd d2l'
SETUP+=' && { test -x ~/.local/bin/uv || curl -LsSf https://astral.sh/uv/install.sh | sh; }'
SETUP+=' && ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 .venv'
SETUP+=' && ~/.local/bin/uv pip install --quiet -r requirements.lock "jax[tpu]==0.12.0.1" -e .'
tpu ssh "$NAME" --worker=all --command="$SETUP"

# ---------------------------------------------------------------- train; SIGTERM saves a checkpoint first
TRAIN=$(printf '%q ' .venv/bin/d2l train --config "$CONFIG" --workdir "$WORKDIR" "$@")
tpu ssh "$NAME" --worker=all --command="cd d2l && HF_TOKEN_PATH=~/d2l.token exec ${TRAIN% }"
