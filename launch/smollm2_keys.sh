#!/usr/bin/env bash
# RULER's needles with UUIDs and several keys, on SmolLM2: data, the hypernetwork of `configs/smollm2_keys.py`, which goes on
# from checkpoints/ruler_smollm2, which chunks stay (`configs/smollm2_keys_relevance.py`), evaluation. The same command
# again resumes.
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
made ruler_single_quoted --tasks "$singles" --samples 2500 --lengths 0-128 --seed 23
made ruler_uuids_quoted --tasks single_3 --samples 2500 --lengths 60-200 --seed 26
made ruler_keys_quoted --tasks multikey_1 --needles 2-8 --queries 3 --samples 6000 --lengths 160-300 --seed 24
made ruler_words_quoted --tasks multikey_1 --needles 2-8 --queries 3 --samples 4000 --lengths 160-300 --seed 31 \
    --words vocabulary
made ruler_few_quoted --tasks multikey_1 --needles 1-3 --queries 2 --samples 4000 --lengths 40-128 --seed 25
made ruler_keys_long --tasks multikey_1 --needles 2-8 --queries 3 --samples 1500 --lengths 300-460 --seed 34
made ruler_texts_long --tasks single_2,single_3 --samples 600 --lengths 200-400 --seed 35
d2l train --config configs/smollm2_keys.py --workdir runs/smollm2_keys
d2l train --config configs/smollm2_keys_relevance.py --workdir runs/smollm2_keys_relevance
d2l eval --config configs/eval_keys.py --workdir runs/eval_keys --config.hypernet=runs/smollm2_keys_relevance/hypernet
