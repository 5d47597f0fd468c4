#!/usr/bin/env bash
# Pages about people who do not exist, on SmolLM2: pages with short answers, the hypernetwork of
# `configs/smollm2_pages.py`, the target's own answers, the hypernetwork of `configs/smollm2_pages_taught.py`, evaluation
# on held-out pages. The same command again resumes.
#
#   launch/smollm2_pages.sh [--dry-run]
set -euo pipefail
cd "$(dirname "$0")/.."
USAGE="" MOST=0
source launch/here.sh

pages() { # name, arguments
    [[ -e "data/$1" ]] || d2l data biographies --samples 6000 "${@:2}" --out "data/$1"
}
facts=(--kinds "fact,multi_hop,contradiction" --closed-qa 1)
pages pages_72 --lengths 12-72 --queries 2 --closed-qa 1
pages facts_48 --lengths 12-48 --queries 2 "${facts[@]}" --seed 11
pages facts_96 --lengths 32-96 --queries 3 "${facts[@]}" --seed 12
d2l train --config configs/smollm2_pages.py --workdir runs/smollm2_pages

pages pages_to_teach --lengths 24-200 --queries 3 --seed 8
d2l selfgen data/pages_to_teach --limit 1024 --questions keep --closed-qa 0.7 --max-new-tokens 32 --part-size 64 \
    --out data/pages_taught
d2l train --config configs/smollm2_pages_taught.py --workdir runs/smollm2_pages_taught
d2l eval --config configs/eval_pages.py --workdir runs/eval_pages --config.hypernet=runs/smollm2_pages_taught/hypernet
