#!/usr/bin/env bash
# From a folder of documents to a report, on this machine: the target asks and answers about them, a hypernetwork learns
# from that in two stages, and documents that were held out are asked about. The same command again resumes.
#
#   launch/local_pipeline.sh [--dry-run] [DOCUMENTS [RUNS]]
#
# DOCUMENTS: a folder, of which every fifth file is held out (default: those that are installed on this machine)
# RUNS: where everything goes (default: runs/local_pipeline)
#
#   PASSAGES=24 HELD_OUT=12 PAGES=24 STEPS=20 CHUNK_STEPS=6 launch/local_pipeline.sh     the small setting, and the default
set -euo pipefail
cd "$(dirname "$0")/.."
USAGE="[DOCUMENTS [RUNS]]" MOST=2
source launch/here.sh
DOCUMENTS=${1:-}
RUNS=${2:-runs/local_pipeline}
PASSAGES=${PASSAGES:-24}    # passages to learn from
PAGES=${PAGES:-24}          # pages about people who do not exist, to learn from too
HELD_OUT=${HELD_OUT:-12}    # passages to be evaluated on
STEPS=${STEPS:-20}          # with one chunk a document
CHUNK_STEPS=${CHUNK_STEPS:-6}  # with several
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$RUNS/compiled}

# ---------------------------------------------------------------- documents
if [[ -z "$DOCUMENTS" ]]; then
    for split in train test; do
        [[ -e "$RUNS/documents_$split" ]] || d2l data corpus --kinds man,python --limit 200 --split "$split" \
            --max-tokens 256 --min-tokens 64 --out "$RUNS/documents_$split"
    done
    learn=("$RUNS/documents_train") held_out=("$RUNS/documents_test")
else
    mapfile -t files < <(find -L "$DOCUMENTS" -type f -not -path '*/.*' | LC_ALL=C sort)
    learn=() held_out=()
    for i in "${!files[@]}"; do
        if ((i % 5 == 4)); then held_out+=("${files[i]}"); else learn+=("${files[i]}"); fi
    done
    if ((${#held_out[@]} == 0)); then
        echo "local_pipeline.sh: $DOCUMENTS has ${#files[@]} file(s): give a folder with five or more." >&2
        exit 2
    fi
fi
[[ -e "$RUNS/pages" ]] || d2l data biographies --samples "$PAGES" --lengths 64-256 --out "$RUNS/pages"

# ---------------------------------------------------------------- questions, answers and their probabilities
d2l selfgen "${learn[@]}" --passage-tokens 256 --per-round 2 --closed-qa 0.8 --limit "$PASSAGES" --out "$RUNS/learn"
d2l selfgen "${held_out[@]}" --passage-tokens 256 --per-round 2 --closed-qa 0.8 --limit "$HELD_OUT" --out "$RUNS/held_out"
d2l selfgen "$RUNS/pages" --questions keep --closed-qa 0.5 --max-new-tokens 48 --out "$RUNS/learn_pages"

# ---------------------------------------------------------------- hypernetwork
data_of() { # of a stage
    data=("--config.stages.$1.data.corpus.path=$RUNS/learn" "--config.stages.$1.data.biographies.path=$RUNS/learn_pages")
}
data_of one_chunk
d2l train --config configs/smollm2_qa_stage1.py --workdir "$RUNS/stage1" "${data[@]}" \
    --config.stages.one_chunk.steps="$STEPS" --config.stages.one_chunk.warmup=5
data_of chunks
d2l train --config configs/smollm2_qa_stage2.py --workdir "$RUNS/stage2" "${data[@]}" \
    --config.stages.chunks.steps="$CHUNK_STEPS" --config.stages.chunks.warmup=2 --config.init="$RUNS/stage1/hypernet"

# ---------------------------------------------------------------- report
d2l eval --config configs/eval_local.py --workdir "$RUNS/eval" --config.hypernet="$RUNS/stage2/hypernet" \
    --config.suites.records.path="$RUNS/held_out"
