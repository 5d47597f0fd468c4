#!/usr/bin/env bash
# Needles on SmolLM2 from nothing: single chunks, then many (what is shipped), then exact match by length.
# The same command again resumes where it was stopped.
#
#   launch/niah_smollm2.sh [--dry-run] [RUNS]     RUNS: where the workdirs go (default: runs)
set -euo pipefail
cd "$(dirname "$0")/.."
USAGE="[RUNS]" MOST=1
source launch/here.sh
RUNS=${1:-runs}

d2l train --config configs/niah_smollm2.py --workdir "$RUNS/niah_smollm2"
d2l train --config configs/niah_smollm2_far.py --workdir "$RUNS/niah_smollm2_far" \
    --config.init="$RUNS/niah_smollm2/hypernet"
d2l eval --config configs/eval_niah_long.py --workdir "$RUNS/eval_niah_long" \
    --config.hypernet="$RUNS/niah_smollm2_far/hypernet"
