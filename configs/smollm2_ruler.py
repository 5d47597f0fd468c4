"""RULER's needle tasks on SmolLM2-135M-Instruct: several keys a document, each a word with a number of seven digits.

Goes on from the shipped needle hypernetwork, which copies four digits out of one sentence. Keys first, nearly alone,
with a question about each; then up to eight of them in texts of up to 256 tokens, in 1 to 8 chunks. Splits share no
nouns of keys and no texts. The launcher makes the data, trains and evaluates; this is its second step:

    launch/smollm2_ruler.sh
    d2l train --config configs/smollm2_ruler.py --workdir runs/smollm2_ruler

Not run to its end: 58 updates of the first stage, 15 s each on two CPU cores that other work shared, after 79 of an
earlier form of it (docs/log.md). Useful override: --config.dtype=float32, no slower on cores without AMX, in 19 GB
instead of 13
"""

import ml_collections

from configs import niah_smollm2


def get_config() -> ml_collections.ConfigDict:
    config = niah_smollm2.get_config()
    config.init = "checkpoints/niah_smollm2"
    config.hypernet.row_gate = True
    config.lr_multipliers.gate = 30.0
    config.update({"max_chunk_len": 256, "chunk_overlap": 64, "keep_chunks": 12})
    stage = {"warmup": 20, "lr_factor": 1.0, "query_tokens": 512}
    config.stages = ml_collections.ConfigDict(
        {
            "short": stage
            | {
                "order": 0,
                "steps": 250,
                "final": 1.0,
                "data": {
                    "one": {"path": "data/ruler_one", "weight": 0.5},
                    "short": {"path": "data/ruler_short", "weight": 0.5},
                },
                "max_chunk_len": 96,
                # One pack: 1,920 positions of documents, 2,048 of questions with their answers.
                "contexts": 32,
                "chunks": 32,
                "ctx_rows": 5,
                "ctx_tokens": 384,
                "row_chunks": 9,
                "query_rows": 4,
                "row_contexts": 9,
                "responses": 400,
            },
            "texts": stage
            | {
                "order": 1,
                "steps": 300,
                "final": 0.1,
                "data": {"texts": {"path": "data/ruler_256", "weight": 1.0}},
                "min_chunk_len": 32,
                "max_chunk_len": 256,
                "max_chunks": 8,
                # One pack: 2,800 positions of documents, 2,048 of questions with their answers.
                "contexts": 16,
                "chunks": 44,
                "ctx_rows": 5,
                "ctx_tokens": 560,
                "row_chunks": 8,
                "query_rows": 4,
                "row_contexts": 4,
                "responses": 384,
            },
        }
    )
    return config
