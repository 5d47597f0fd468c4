"""RULER's needles on SmolLM2-135M-Instruct, UUIDs and up to eight keys among them, with a memory of every token.

From `checkpoints/ruler_smollm2`, which knows one number: layer 1 also gets a row for every token of the document, where
tokens are told apart by the words before them (`docs/memory.md`), and answers quote the sentence. In use at most
eight chunks of a document stay, those nearly as loud as the loudest. The launcher makes the data, trains and evaluates:

    launch/smollm2_keys.sh
    d2l train --config configs/smollm2_keys.py --workdir runs/smollm2_keys

Two CPU cores: 11 to 16 s an update, an hour or more, and 1.7 s one of the reading. What is shipped came about in
five parts, of which the last is the stage `words` (its card).
Useful override: --config.init=checkpoints/keys_smollm2, from the shipped weights on
"""

import ml_collections

from configs import smollm2_ruler


def get_config() -> ml_collections.ConfigDict:
    config = smollm2_ruler.get_config()
    config.init = "checkpoints/ruler_smollm2"
    config.hypernet.update(
        {
            "memory_layers": (1,),
            "memory_tokens": 78,
            "turn_tokens": (8, 6),
            "memory_strength": 2.0,
            "memory_ridge": 0.001,
            "memory_size": 0,
            "memory_noise": 256,
            "memory_value_map": True,
            "memory_skip_first": True,
        }
    )
    config.lr_multipliers.memory = 10.0
    config.reading_steps = 400
    config.checkpoint_every = 20
    config.update({"max_chunk_len": 64, "chunk_len": 32, "keep_chunks": 8, "keep_loudness": 0.7})
    stage = {
        "order": 0,
        "steps": 280,
        "warmup": 5,
        "lr_factor": 1.0,
        "final": 0.03,
        "data": {
            "single": {"path": "data/ruler_single_quoted", "weight": 0.3},
            "uuids": {"path": "data/ruler_uuids_quoted", "weight": 0.15},
            "few": {"path": "data/ruler_few_quoted", "weight": 0.15},
            "keys": {"path": "data/ruler_keys_quoted", "weight": 0.4},
        },
        "chunk_at": "sentences",
        "min_chunk_len": 24,
        "max_chunk_len": 64,
        "max_chunks": 8,
        # One pack: 3,000 positions of documents, 2,050 of questions with their answers.
        "contexts": 16,
        "chunks": 64,
        "ctx_rows": 6,
        "ctx_tokens": 500,
        "row_chunks": 12,
        "query_rows": 5,
        "query_tokens": 410,
        "row_contexts": 4,
        "responses": 800,
    }
    longer = stage | {
        "order": 1,
        "steps": 45,
        "warmup": 3,
        "lr_factor": 0.6,
        "final": 0.05,
        # Other text around the needles, so that rows of it learn to be silent.
        "data": {
            "keys_long": {"path": "data/ruler_keys_long", "weight": 0.5},
            "texts_long": {"path": "data/ruler_texts_long", "weight": 0.25},
            "keys": {"path": "data/ruler_keys_quoted", "weight": 0.15},
            "single": {"path": "data/ruler_single_quoted", "weight": 0.1},
        },
        "contexts": 11,
        "max_chunks": 12,
        "chunks": 90,
        "ctx_rows": 9,
        "query_rows": 4,
    }
    # Keys of any words beside RULER's: what tells them apart is learned from many.
    words = stage | {
        "order": 2,
        "steps": 80,
        "warmup": 3,
        "lr_factor": 0.6,
        "data": {
            "keys": {"path": "data/ruler_keys_quoted", "weight": 0.4},
            "words": {"path": "data/ruler_words_quoted", "weight": 0.22},
            "uuids": {"path": "data/ruler_uuids_quoted", "weight": 0.12},
            "texts_long": {"path": "data/ruler_texts_long", "weight": 0.1},
            "single": {"path": "data/ruler_single_quoted", "weight": 0.1},
            "few": {"path": "data/ruler_few_quoted", "weight": 0.06},
        },
        "contexts": 14,
        "chunks": 60,
    }
    config.stages = ml_collections.ConfigDict({"memory": stage, "longer": longer, "words": words})
    return config
