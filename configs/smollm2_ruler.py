"""RULER's needle tasks on SmolLM2-135M-Instruct: keys that are words, numbers of seven digits, then UUIDs.

Goes on from the shipped needle hypernetwork, which copies four digits out of one sentence, with several keys a document
and a question about each. Splits share no nouns of keys and no haystacks.

    d2l data ruler --tasks single_1,single_2 --needles 1-3 --queries 3 --lengths 0-96 --samples 20000 --out data/ruler_short
    d2l data ruler --tasks single_1,single_2 --needles 1-8 --queries 6 --lengths 240-256 --samples 8000 --seed 1 --out data/ruler_256
    d2l data ruler --tasks single_3 --needles 1-2 --queries 2 --lengths 112-256 --samples 8000 --seed 2 --out data/ruler_uuids
    d2l train --config configs/smollm2_ruler.py --workdir runs/smollm2_ruler

Useful override: --config.init=FOLDER
"""

import ml_collections

from configs import niah_smollm2


def get_config() -> ml_collections.ConfigDict:
    config = niah_smollm2.get_config()
    config.init = "checkpoints/niah_smollm2"
    config.hypernet.row_gate = True
    config.lr_multipliers.gate = 30.0
    config.update({"max_chunk_len": 256, "chunk_overlap": 64, "keep_chunks": 12})
    stage = {"warmup": 20, "final": 1.0, "lr_factor": 1.0, "row_contexts": 6, "query_tokens": 512}
    config.stages = ml_collections.ConfigDict(
        {
            "short": stage
            | {
                "order": 0,
                "steps": 300,
                "data": {"short": {"path": "data/ruler_short", "weight": 1.0}},
                "max_chunk_len": 96,
                # One pack: 1,920 positions of documents, 2,560 of questions with their answers.
                "contexts": 28,
                "chunks": 28,
                "ctx_rows": 5,
                "ctx_tokens": 384,
                "row_chunks": 6,
                "query_rows": 5,
                "responses": 480,
            },
        }
    )
    return config
