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
    [[ -e "data/$1" ]] || d2l data biographies --samples 6000 "${@:2}" --out "data/$1"
}
short=(--closed-qa 1 --kinds "fact,multi_hop,contradiction")
continued=(--closed-qa 0.7 --answers continued --queries 3)
pages pages_72 --lengths 12-72 --queries 2 --closed-qa 1
pages facts_48 --lengths 12-48 --queries 2 "${short[@]}" --seed 11
pages facts_96 --lengths 32-96 --queries 3 "${short[@]}" --seed 12
pages continued_64 --lengths 12-64 "${continued[@]}" --seed 31
pages continued_120 --lengths 32-120 "${continued[@]}" --seed 32
pages spaced_72 --lengths 12-72 --queries 2 --closed-qa 1 --answers spaced --seed 61
pages spaced_240 --lengths 64-240 --queries 4 --closed-qa 1 --answers spaced --seed 62
pages pages_to_say --lengths 24-200 --queries 3 --seed 8
d2l selfgen data/pages_to_say --limit 1024 --questions keep --closed-qa 0.7 --max-new-tokens 32 --out data/pages_said
d2l train --config configs/smollm2_pages.py --workdir runs/smollm2_pages
d2l eval --config configs/eval_pages.py --workdir runs/eval_pages --config.hypernet=runs/smollm2_pages/hypernet
