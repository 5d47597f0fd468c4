#!/usr/bin/env bash
# Real text on SmolLM2: articles of Wikipedia, out of a package, with questions made without a model, the hypernetwork of
# `configs/smollm2_texts.py`, the mean of its weights and those it began with, evaluation on passages with questions
# written by hand. The same command again resumes.
#
#   launch/smollm2_texts.sh [--dry-run]
set -euo pipefail
cd "$(dirname "$0")/.."
USAGE="" MOST=0
source launch/here.sh
source launch/wikipedia.sh

made wiki_64 wikipedia $DUMP --max-tokens 64 --min-tokens 24
made wiki_128 wikipedia $DUMP --max-tokens 128 --min-tokens 48
made cloze_continued_64 cloze data/wiki_64 --queries 2 --answers continued --closed-qa 0.5 --seed 71
made cloze_continued_128 cloze data/wiki_128 --queries 3 --answers continued --closed-qa 0.5 --seed 72
made cloze_spaced_64 cloze data/wiki_64 --queries 2 --answers spaced --closed-qa 1 --seed 73
made cloze_spaced_128 cloze data/wiki_128 --queries 3 --answers spaced --closed-qa 1 --seed 74
made spaced_72 biographies --samples 6000 --lengths 12-72 --queries 2 --closed-qa 1 --answers spaced --seed 61
made spaced_240 biographies --samples 3000 --lengths 64-240 --queries 4 --closed-qa 1 --answers spaced --seed 62
made unrelated_120 unrelated --samples 3000 --lengths 24-120 --queries 2 --closed-qa 1 --answers spaced --seed 75
d2l train --config configs/smollm2_texts.py --workdir runs/smollm2_texts
d2l average checkpoints/pages_smollm2 runs/smollm2_texts/hypernet --out runs/texts_mean
d2l eval --config configs/eval_texts.py --workdir runs/eval_texts --config.hypernet=runs/texts_mean
