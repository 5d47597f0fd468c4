"""Pages about people who do not exist on SmolLM2-135M-Instruct: short answers whose facts only the page tells.

A hypernetwork of 39M parameters whose rows also copy from the document (`d2l/hypernet/copies.py`) reads a page. Stages:
short answers, half of them the person's name, then mostly other facts; what the target itself says with the page in
its prompt (KL); sentences that are given up to what is asked for, so that all of the loss is on what the page alone
tells; these and short answers, also about longer pages. The launcher makes the data, trains and evaluates:

    launch/smollm2_pages.sh
    d2l train --config configs/smollm2_pages.py --workdir runs/smollm2_pages

Two CPU cores alone, without AMX: 12.5 to 18 s an update, 2 hours, 14 GB. What is shipped came by nearly these
stages, with restarts between them; in one go this has not run yet (its card). Useful override:
--config.checkpoint_every=10
"""

import ml_collections

from configs import niah_smollm2


def get_config() -> ml_collections.ConfigDict:
    config = niah_smollm2.get_config()
    config.hypernet.update({"row_gate": True, "copy_size": 64, "layer_idx": 10})
    config.lr_multipliers.update({"gate": 30.0, "copies": 4.0, "scaler_copy": 0.3})
    config.update({"max_chunk_len": 100, "chunk_at": "sentences"})
    stage = {"warmup": 10, "final": 1.0, "lr_factor": 1.0, "max_chunk_len": 100, "chunk_at": "sentences"}
    short = stage | {
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
    few, more = {"path": "data/continued_64"}, {"path": "data/continued_120"}
    long = stage | {
        "min_chunk_len": 24,
        "max_chunks": 4,
        # One pack: 1,920 positions of documents, 2,150 of questions with their answers.
        "contexts": 20,
        "chunks": 30,
        "ctx_rows": 4,
        "ctx_tokens": 480,
        "row_chunks": 9,
        "query_rows": 5,
        "query_tokens": 430,
        "row_contexts": 12,
        "responses": 440,
    }
    config.stages = ml_collections.ConfigDict(
        {
            "names": short | {"order": 0, "steps": 90, "data": {"pages": {"path": "data/pages_72", "weight": 1.0}}},
            "facts": short
            | {
                "order": 1,
                "steps": 110,
                "data": {
                    "few": {"path": "data/facts_48", "weight": 0.65},
                    "more": {"path": "data/facts_96", "weight": 0.35},
                },
            },
            "said": stage
            | {
                "order": 2,
                "steps": 130,
                "final": 0.1,
                "loss": "kl",
                "teacher_top_k": 16,
                "data": {"pages": {"path": "data/pages_said", "weight": 1.0}},
                "min_chunk_len": 24,
                "max_chunk_len": 120,
                "max_chunks": 3,
                # One pack: 2,200 positions of documents, 2,640 of questions with their answers.
                "contexts": 18,
                "chunks": 30,
                "ctx_rows": 5,
                "ctx_tokens": 440,
                "row_chunks": 8,
                "query_rows": 6,
                "query_tokens": 440,
                "row_contexts": 10,
                "responses": 960,
            },
            "continued": long
            | {
                "order": 3,
                "steps": 50,
                "data": {"few": few | {"weight": 0.65}, "more": more | {"weight": 0.35}},
            },
            "answers": long
            | {
                "order": 4,
                "steps": 100,
                "final": 0.03,
                "data": {
                    "short": {"path": "data/spaced_72", "weight": 0.35},
                    "long": {"path": "data/spaced_240", "weight": 0.25},
                    "few": few | {"weight": 0.2},
                    "more": more | {"weight": 0.2},
                },
            },
        }
    )
    return config
