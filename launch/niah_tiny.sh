#!/usr/bin/env bash
# The tiny recipe: a target trained from nothing, its hypernetwork, then exact match inside the window and at 4x.
# The same command again resumes where it was stopped.
#
#   launch/niah_tiny.sh [--dry-run] [RUNS]     RUNS: where the two workdirs go (default: runs)
#   SEED=1 SAMPLES=200 launch/niah_tiny.sh runs/seed1
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/cpu_env.sh

d2l() { echo "+ d2l $*" >&2; .venv/bin/python -m d2l.cli "$@"; }
if [[ "${1:-}" == --dry-run ]]; then
    d2l() { echo "d2l $*"; }
    shift
elif [[ ! -x .venv/bin/python ]]; then
    echo "niah_tiny.sh: there is no .venv yet: run \`make test\` or \`make demo\` once, either sets it up." >&2
    exit 2
fi
if (($# > 1)) || [[ "${1:-}" == -* ]]; then
    echo "usage: launch/niah_tiny.sh [--dry-run] [RUNS]" >&2
    exit 2
fi
RUNS=${1:-runs}
SEED=${SEED:-0}
SAMPLES=${SAMPLES:-200}

d2l train --config configs/niah_tiny_target.py --workdir "$RUNS/niah_tiny_target" --config.seed="$SEED"
d2l train --config configs/niah_tiny.py --workdir "$RUNS/niah_tiny" --config.seed="$SEED" \
    --config.target="$RUNS/niah_tiny_target/target"
d2l eval --tasks niah --methods d2l,in_context,no_context --lengths 32-190,960-1024 --samples "$SAMPLES" --seed 1 \
    --target "$RUNS/niah_tiny_target/target" --hypernet "$RUNS/niah_tiny/hypernet"
