#!/usr/bin/env bash
# RULER's needles on SmolLM2: data, the hypernetwork of `configs/smollm2_ruler.py`, then with a memory, `_memory.py`;
# evaluation to five times the window. The same command again resumes.
#
#   launch/smollm2_ruler.sh [--dry-run]
set -euo pipefail
cd "$(dirname "$0")/.."
USAGE="" MOST=0
source launch/here.sh

made() { # folder, arguments
    [[ -e "data/$1" ]] || d2l data ruler "${@:2}" --out "data/$1"
}
numbers=(--tasks "single_1,single_2" --samples 8000)
made ruler_one "${numbers[@]}" --lengths 0-64 --seed 3
made ruler_texts "${numbers[@]}" --lengths 0-256 --seed 7
singles="single_1,single_2,single_3"
made ruler_single_joined --tasks "$singles" --samples 2500 --lengths 0-128 --seed 3 --answers joined
keys=(--tasks multikey_1 --answers joined)
made ruler_keys_joined "${keys[@]}" --needles 2-8 --queries 3 --samples 5000 --lengths 160-256 --seed 4
made ruler_few_joined "${keys[@]}" --needles 1-3 --queries 2 --samples 4000 --lengths 40-128 --seed 5
d2l train --config configs/smollm2_ruler.py --workdir runs/smollm2_ruler
d2l train --config configs/smollm2_ruler_memory.py --workdir runs/smollm2_ruler_memory
d2l eval --config configs/eval_ruler_long.py --workdir runs/eval_ruler_long \
    --config.hypernet=runs/smollm2_ruler_memory/hypernet
