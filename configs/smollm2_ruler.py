"""RULER's single needles on SmolLM2-135M-Instruct: a key of two words, a number of seven digits, real text or noise.

Goes on from the shipped needle hypernetwork, which copies four digits out of one sentence. Needles nearly alone, then
texts of up to 256 tokens in 1 to 4 chunks of whole sentences. In use the loudest chunk of a document stays. Splits
share no nouns of keys and no texts. The launcher makes the data, trains and evaluates:

    launch/smollm2_ruler.sh
    d2l train --config configs/smollm2_ruler.py --workdir runs/smollm2_ruler

Two CPU cores alone, without AMX: 8 and 11 s an update, 75 minutes in all, 13 GB. What is shipped had 137 updates on
documents of several needles before, then 112 and 201 of these stages (its card); in one go this has not run yet.
Useful override: --config.dtype=float32, a little faster on such cores, in 21 GB
"""

import ml_collections

from configs import niah_smollm2


def get_config() -> ml_collections.ConfigDict:
    config = niah_smollm2.get_config()
    config.init = "checkpoints/niah_smollm2"
    config.hypernet.row_gate = True
    config.lr_multipliers.gate = 30.0
    config.update({"max_chunk_len": 128, "chunk_at": "sentences", "keep_chunks": 1})
    one, texts = {"path": "data/ruler_one"}, {"path": "data/ruler_texts"}
    stage = {"warmup": 10, "lr_factor": 1.0, "query_rows": 4, "chunk_at": "sentences"}
    config.stages = ml_collections.ConfigDict(
        {
            "one": stage
            | {
                "order": 0,
                "steps": 250,
                "final": 1.0,
                "data": {"one": one | {"weight": 1.0}},
                "max_chunk_len": 96,
                # One pack: 1,600 positions of documents, 1,600 of questions with their answers.
                "contexts": 40,
                "chunks": 40,
                "ctx_rows": 4,
                "ctx_tokens": 400,
                "row_chunks": 10,
                "query_tokens": 400,
                "row_contexts": 10,
                "responses": 328,
            },
            "texts": stage
            | {
                "order": 1,
                "steps": 200,
                "final": 0.03,
                "data": {"one": one | {"weight": 0.3}, "texts": texts | {"weight": 0.7}},
                "min_chunk_len": 24,
                "max_chunk_len": 128,
                "max_chunks": 4,
                # One pack: 3,312 positions of documents, 1,344 of questions with their answers.
                "contexts": 32,
                "chunks": 60,
                "ctx_rows": 6,
                "ctx_tokens": 552,
                "row_chunks": 12,
                "query_tokens": 336,
                "row_contexts": 8,
                "responses": 264,
            },
        }
    )
    return config
