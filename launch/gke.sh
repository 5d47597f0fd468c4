#!/usr/bin/env bash
# Train on a TPU slice of a GKE cluster through xpk (pip install xpk; the cluster was made by `xpk cluster create`).
# JobSet restarts a preempted job by itself; the same command again replaces the job, which resumes too.
#
#   launch/gke.sh [--dry-run] CONFIG WORKDIR [--config.FIELD=VALUE...]
#   CLUSTER=my-cluster TYPE=v5litepod-256 launch/gke.sh configs/mistral_7b_main.py gs://BUCKET/mistral_7b_main
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
fi
if (($# < 2)) || [[ "$2" != gs://* ]]; then
    echo "usage: launch/gke.sh [--dry-run] CONFIG gs://BUCKET/WORKDIR [--config.FIELD=VALUE...]" >&2
    exit 2
fi
CONFIG=$1 WORKDIR=$2
shift 2
NAME=${NAME:-d2l}
CLUSTER=${CLUSTER:-d2l}
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-16}
IMAGE=${IMAGE:-python:3.12}
RESTARTS=${RESTARTS:-100}
SOURCE=runs/gke/$NAME # what goes into the image: this commit alone

# ---------------------------------------------------------------- this commit
run mkdir -p "$SOURCE"
run git archive --format=tar --output="$SOURCE.tar" HEAD
run tar -xf "$SOURCE.tar" -C "$SOURCE"
run sh -c "echo HF_TOKEN >$SOURCE.env" # a name alone: xpk adds the value, which gated targets (Gemma) need

# ---------------------------------------------------------------- the job, in place of an earlier one of that name
run gcloud container clusters get-credentials "$CLUSTER" --location="${ZONE%-*}"
run kubectl delete jobset "$NAME" --ignore-not-found

# d2l is the container's own process, so that SIGTERM reaches it: it saves a checkpoint within the grace period.
TRAIN=$(printf '%q ' d2l train --config "$CONFIG" --workdir "$WORKDIR" "$@")
run xpk workload create --cluster="$CLUSTER" --zone="$ZONE" --workload="$NAME" --tpu-type="$TYPE" \
    --base-docker-image="$IMAGE" --script-dir="$SOURCE" --max-restarts="$RESTARTS" \
    --termination-grace-period-seconds=60 ${HF_TOKEN:+--env-file="$SOURCE.env"} \
    --command="pip install --quiet -r requirements.lock 'jax[tpu]==0.12.0.1' -e . && exec ${TRAIN% }"
