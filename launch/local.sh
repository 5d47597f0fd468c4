#!/usr/bin/env bash
# Trains with N processes on this machine, as on N hosts: each has DEVICES simulated CPU devices, and they talk through
# gloo. One that dies ends all; the same command again resumes. SIGTERM saves a checkpoint first.
#
#   launch/local.sh [--dry-run] N --config configs/X.py --workdir RUNS/X [--config.FIELD=VALUE...]
#   DEVICES=2 PORT=12345 launch/local.sh 4 ...
set -euo pipefail
cd "$(dirname "$0")/.."

usage() { echo "usage: launch/local.sh [--dry-run] N --config FILE --workdir DIR [...]" >&2; exit 2; }
dry=0
if [[ "${1:-}" == --dry-run ]]; then dry=1; shift; fi
[[ "${1:-}" =~ ^[1-9][0-9]*$ && $# -gt 1 ]] || usage
count=$1
shift
PYTHON=${PYTHON:-.venv/bin/python}
if [[ ! -x "$PYTHON" ]]; then
    echo "local.sh: there is no $PYTHON yet: run \`make test\` or \`make demo\` once, or set PYTHON." >&2
    exit 2
fi
PORT=${PORT:-$("$PYTHON" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')}
export JAX_PLATFORMS=cpu XLA_FLAGS="--xla_force_host_platform_device_count=${DEVICES:-2}"

pids=()
for ((i = 0; i < count; i++)); do
    command=("$PYTHON" -m d2l.cli train "$@" --coordinator "127.0.0.1:$PORT" --num-processes "$count" --process-id "$i")
    if ((dry)); then
        echo "XLA_FLAGS=$XLA_FLAGS JAX_PLATFORMS=cpu ${command[*]}"
    else
        "${command[@]}" &
        pids+=($!)
    fi
done

signalled=0
trap 'signalled=1; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
left=${#pids[@]}
while ((left)); do
    status=0
    wait -n || status=$?
    if ((signalled)); then # the wait was cut short, nothing has ended
        signalled=0
        continue
    fi
    if ((status)); then # the others wait for the dead one in vain
        kill -KILL "${pids[@]}" 2>/dev/null || true
        exit "$status"
    fi
    left=$((left - 1))
done
