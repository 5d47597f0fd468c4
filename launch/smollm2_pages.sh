#!/usr/bin/env bash
# Pages about people who do not exist, on SmolLM2: pages with short answers, the hypernetwork of
# `configs/smollm2_pages.py`, evaluation on held-out pages. The same command again resumes.
#
#   launch/smollm2_pages.sh [--dry-run]
set -euo pipefail
cd "$(dirname "$0")/.."
USAGE="" MOST=0
source launch/here.sh

pages() { # name, arguments
    [[ -e "data/$1" ]] || d2l data biographies --samples 6000 --closed-qa 1 "${@:2}" --out "data/$1"
}
facts=(--kinds "fact,multi_hop,contradiction")
pages pages_72 --lengths 12-72 --queries 2
pages facts_48 --lengths 12-48 --queries 2 "${facts[@]}" --seed 11
pages facts_96 --lengths 32-96 --queries 3 "${facts[@]}" --seed 12
d2l train --config configs/smollm2_pages.py --workdir runs/smollm2_pages
d2l eval --config configs/eval_pages.py --workdir runs/eval_pages --config.hypernet=runs/smollm2_pages/hypernet
