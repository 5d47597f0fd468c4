#!/usr/bin/env bash
# The tiny recipe: a target trained from nothing, its hypernetwork, then exact match inside the window and at 4x.
# The same command again resumes where it was stopped.
#
#   launch/niah_tiny.sh [--dry-run] [RUNS]     RUNS: where the two workdirs go (default: runs)
#   SEED=1 SAMPLES=200 launch/niah_tiny.sh runs/seed1
set -euo pipefail
cd "$(dirname "$0")/.."
USAGE="[RUNS]" MOST=1
source launch/here.sh
RUNS=${1:-runs}
SEED=${SEED:-0}
SAMPLES=${SAMPLES:-200}

d2l train --config configs/niah_tiny_target.py --workdir "$RUNS/niah_tiny_target" --config.seed="$SEED"
d2l train --config configs/niah_tiny.py --workdir "$RUNS/niah_tiny" --config.seed="$SEED" \
    --config.target="$RUNS/niah_tiny_target/target"
d2l eval --tasks niah --methods d2l,in_context,no_context --lengths 32-190,960-1024 --samples "$SAMPLES" --seed 1 \
    --target "$RUNS/niah_tiny_target/target" --hypernet "$RUNS/niah_tiny/hypernet"
