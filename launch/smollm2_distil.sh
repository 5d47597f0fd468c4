#!/usr/bin/env bash
# What SmolLM2 says with a document in its prompt: pages about people and passages of Wikipedia, its own answers to
# questions about them, the hypernetwork of `configs/smollm2_distil.py`, then with a memory, `_memory.py`, then on more
# questions about real text, `_open.py`, and the mean of the last two; evaluation on held-out pages and passages. The
# same command again resumes.
#
#   launch/smollm2_distil.sh [--dry-run]
set -euo pipefail
cd "$(dirname "$0")/.."
USAGE="" MOST=0
source launch/here.sh
source launch/wikipedia.sh

said() { # folder, records, arguments
    d2l selfgen "data/$2" --questions keep --max-new-tokens 32 "${@:3}" --out "data/$1"
}
made pages_128 biographies --samples 2400 --lengths 12-128 --queries 4 --seed 91
made pages_160 biographies --samples 6000 --lengths 12-160 --queries 4 --seed 92
made wiki_128 wikipedia $DUMP --max-tokens 128 --min-tokens 48
made cloze_plain_128 cloze data/wiki_128 --queries 3 --answers spaced --closed-qa 1 --plain --seed 77
made cloze_128 cloze data/wiki_128 --queries 2 --answers spaced --closed-qa 1 --seed 78
made open_128 questions data/wiki_128 --queries 3 --closed-qa 1 --seed 81
said said_128 pages_128 --limit 1200 --closed-qa 0.9 --seed 6
said said_160 pages_160 --limit 3200 --closed-qa 0.9 --unfinished keep --seed 7
said said_wiki cloze_plain_128 --limit 900 --closed-qa 0 --unfinished keep --seed 8
said said_cloze cloze_128 --limit 1200 --closed-qa 0 --unfinished keep --seed 9
said said_open open_128 --limit 896 --closed-qa 0 --unfinished keep --seed 12
d2l train --config configs/smollm2_distil.py --workdir runs/smollm2_distil
d2l train --config configs/smollm2_distil_memory.py --workdir runs/smollm2_distil_memory
d2l train --config configs/smollm2_distil_open.py --workdir runs/smollm2_distil_open
[[ -e runs/smollm2_distil_mean ]] ||
    d2l average runs/smollm2_distil_memory/hypernet runs/smollm2_distil_open/hypernet --out runs/smollm2_distil_mean
d2l eval --config configs/eval_distil.py --workdir runs/eval_distil \
    --config.hypernet=runs/smollm2_distil_mean
