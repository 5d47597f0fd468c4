#!/usr/bin/env bash
# RULER's needles with UUIDs and several keys, on SmolLM2: data, the hypernetwork of `configs/smollm2_keys.py`, which goes on
# from checkpoints/ruler_smollm2, evaluation. The same command again resumes.
#
#   launch/smollm2_keys.sh [--dry-run]
set -euo pipefail
cd "$(dirname "$0")/.."
USAGE="" MOST=0
source launch/here.sh

made() { # folder, arguments
    [[ -e "data/$1" ]] || d2l data ruler "${@:2}" --answers quoted --out "data/$1"
}
singles="single_1,single_2,single_3"
made ruler_single_quoted --tasks "$singles" --samples 2500 --lengths 0-128 --seed 3
made ruler_uuids_quoted --tasks single_3 --samples 2500 --lengths 60-200 --seed 6
made ruler_keys_quoted --tasks multikey_1 --needles 2-8 --queries 3 --samples 5000 --lengths 160-256 --seed 4
made ruler_few_quoted --tasks multikey_1 --needles 1-3 --queries 2 --samples 4000 --lengths 40-128 --seed 5
made ruler_keys_long --tasks multikey_1 --needles 2-8 --queries 3 --samples 1200 --lengths 300-420 --seed 14
made ruler_texts_long --tasks single_2,single_3 --samples 500 --lengths 200-400 --seed 15
d2l train --config configs/smollm2_keys.py --workdir runs/smollm2_keys
d2l eval --config configs/eval_keys.py --workdir runs/eval_keys --config.hypernet=runs/smollm2_keys/hypernet
