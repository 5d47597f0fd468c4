#!/usr/bin/env bash
# RULER's needle tasks on SmolLM2: data, the hypernetwork of `configs/smollm2_ruler.py`, evaluation. The same command again
# resumes.
#
#   launch/smollm2_ruler.sh [--dry-run]
set -euo pipefail
cd "$(dirname "$0")/.."
USAGE="" MOST=0
source launch/here.sh

tasks=(--tasks "single_1,single_2")
[[ -e data/ruler_one ]] || d2l data ruler "${tasks[@]}" --lengths 0-64 --samples 8000 --seed 3 --out data/ruler_one
[[ -e data/ruler_short ]] || d2l data ruler "${tasks[@]}" --needles 1-3 --queries 3 --lengths 0-96 --samples 10000 \
    --out data/ruler_short
[[ -e data/ruler_256 ]] || d2l data ruler "${tasks[@]}" --needles 1-8 --queries 4 --lengths 32-256 --samples 5000 --seed 1 \
    --out data/ruler_256
d2l train --config configs/smollm2_ruler.py --workdir runs/smollm2_ruler
d2l eval --config configs/eval_ruler.py --workdir runs/eval_ruler --config.hypernet=runs/smollm2_ruler/hypernet
