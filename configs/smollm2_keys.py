"""RULER's needles on SmolLM2-135M-Instruct, UUIDs and up to eight keys among them, with a memory of every token.

From `checkpoints/ruler_smollm2`, which knows one number: two layers also get a row for every token of the document
(`docs/memory.md`). Answers are sentences that name the key, with the value right after their colon, where the
target's own thoughts tell keys apart. In use at most ten chunks of a document stay, those nearly as loud as the
loudest. The launcher makes the data, trains and evaluates:

    launch/smollm2_keys.sh
    d2l train --config configs/smollm2_keys.py --workdir runs/smollm2_keys

Two CPU cores: 9.6 s an update, 29 minutes, up to 20 GB with jemalloc as `launch/cpu_env.sh` sets it. What is shipped
had 108 of these updates, then 38 with the rate falling from half (its card).
Useful override: --config.init=checkpoints/keys_smollm2, from the shipped weights on
"""

import ml_collections

from configs import smollm2_ruler


def get_config() -> ml_collections.ConfigDict:
    config = smollm2_ruler.get_config()
    config.init = "checkpoints/ruler_smollm2"
    config.hypernet.update(
        {
            "memory_layers": (12, 23),
            "memory_tokens": 78,
            "turn_tokens": (8, 6),
            "memory_strength": 0.7,
            "memory_ridge": 0.03,
        }
    )
    config.lr_multipliers.memory = 10.0
    config.checkpoint_every = 20
    config.update({"max_chunk_len": 64, "keep_chunks": 10, "keep_loudness": 0.7})
    stage = {
        "order": 0,
        "steps": 180,
        "warmup": 5,
        "lr_factor": 1.0,
        "final": 0.03,
        "data": {
            "single": {"path": "data/ruler_single_joined", "weight": 0.4},
            "few": {"path": "data/ruler_few_joined", "weight": 0.2},
            "keys": {"path": "data/ruler_keys_joined", "weight": 0.4},
        },
        "chunk_at": "sentences",
        "min_chunk_len": 24,
        "max_chunk_len": 64,
        "max_chunks": 5,
        # One pack: 3,000 positions of documents, 2,050 of questions with their answers.
        "contexts": 16,
        "chunks": 46,
        "ctx_rows": 6,
        "ctx_tokens": 500,
        "row_chunks": 12,
        "query_rows": 5,
        "query_tokens": 410,
        "row_contexts": 4,
        "responses": 800,
    }
    config.stages = ml_collections.ConfigDict({"memory": stage})
    return config
