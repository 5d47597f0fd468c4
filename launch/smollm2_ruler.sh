#!/usr/bin/env bash
# RULER's single needles on SmolLM2: data, the hypernetwork of `configs/smollm2_ruler.py`, evaluation to five times the
# window. The same command again resumes.
#
#   launch/smollm2_ruler.sh [--dry-run]
set -euo pipefail
cd "$(dirname "$0")/.."
USAGE="" MOST=0
source launch/here.sh

tasks=(--tasks "single_1,single_2" --samples 8000 --words few)
[[ -e data/ruler_one ]] || d2l data ruler "${tasks[@]}" --lengths 0-64 --seed 3 --out data/ruler_one
[[ -e data/ruler_texts ]] || d2l data ruler "${tasks[@]}" --lengths 0-256 --seed 7 --out data/ruler_texts
d2l train --config configs/smollm2_ruler.py --workdir runs/smollm2_ruler
d2l eval --config configs/eval_ruler_long.py --workdir runs/eval_ruler_long \
    --config.hypernet=runs/smollm2_ruler/hypernet
