"""Pages about people who do not exist on SmolLM2-135M-Instruct: the facts first, by cross-entropy on their answers.

A hypernetwork of 39M parameters whose rows also copy from the document (`d2l/hypernet/copies.py`) reads a page and
learns to make the target give the short answers that are known from making it; nothing has to be generated before, so
no page comes twice. Pages of one to six facts, half of the questions for the person; then mostly questions for facts.
The launcher makes the data, trains and evaluates:

    launch/smollm2_pages.sh
    d2l train --config configs/smollm2_pages.py --workdir runs/smollm2_pages

Two CPU cores alone, without AMX: 12.5 s an update, 42 minutes, 14 GB. What is shipped came by nearly these stages, with
a restart between them; in one go this has not run yet (its card). Useful override: --config.checkpoint_every=10
"""

import ml_collections

from configs import niah_smollm2


def get_config() -> ml_collections.ConfigDict:
    config = niah_smollm2.get_config()
    config.hypernet.update({"row_gate": True, "copy_size": 64, "layer_idx": 10})
    config.lr_multipliers.update({"gate": 30.0, "copies": 4.0, "scaler_copy": 0.3})
    config.update({"max_chunk_len": 128, "chunk_at": "sentences"})
    stage = {
        "warmup": 10,
        "final": 1.0,
        "lr_factor": 1.0,
        "max_chunk_len": 100,
        "chunk_at": "sentences",
        # One pack: 1,536 positions of documents, 2,000 of questions with their answers.
        "contexts": 26,
        "chunks": 26,
        "ctx_rows": 4,
        "ctx_tokens": 384,
        "row_chunks": 10,
        "query_rows": 5,
        "query_tokens": 400,
        "row_contexts": 12,
        "responses": 360,
    }
    config.stages = ml_collections.ConfigDict(
        {
            "names": stage | {"order": 0, "steps": 90, "data": {"pages": {"path": "data/pages_72", "weight": 1.0}}},
            "facts": stage
            | {
                "order": 1,
                "steps": 110,
                "data": {
                    "few": {"path": "data/facts_48", "weight": 0.65},
                    "more": {"path": "data/facts_96", "weight": 0.35},
                },
            },
        }
    )
    return config
