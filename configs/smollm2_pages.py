"""Pages about people who do not exist on SmolLM2-135M-Instruct: the facts first, by cross-entropy on their answers.

A hypernetwork of 38M parameters reads a page and learns to make the target give the short answers that are known from
making the page; nothing has to be generated before, so no page comes twice. Pages begin with a few facts of one person.

    d2l data biographies --samples 20000 --lengths 32-96 --queries 6 --closed-qa 1 --out data/pages_96
    d2l data biographies --samples 12000 --lengths 48-256 --queries 8 --closed-qa 1 --seed 1 --out data/pages_256
    d2l train --config configs/smollm2_pages.py --workdir runs/smollm2_pages --config.init=checkpoints/niah_smollm2

Not run to its end: 42 updates of this brought the cross-entropy from 9.1 to 3.3, still falling (docs/log.md). Useful
override: --config.init="" starts from nothing, which has not been tried
"""

import ml_collections

from configs import niah_smollm2


def get_config() -> ml_collections.ConfigDict:
    config = niah_smollm2.get_config()
    config.hypernet.row_gate = True
    config.remat = "full"
    config.max_chunk_len = 256
    stage = {"warmup": 20, "final": 1.0, "lr_factor": 1.0, "row_contexts": 4, "query_tokens": 512}
    config.stages = ml_collections.ConfigDict(
        {
            "short": stage
            | {
                "order": 0,
                "steps": 400,
                "data": {"pages": {"path": "data/pages_96", "weight": 1.0}},
                "max_chunk_len": 96,
                # One pack: 1,920 positions of documents, 3,584 of questions with their answers.
                "contexts": 16,
                "chunks": 16,
                "ctx_rows": 4,
                "ctx_tokens": 480,
                "row_chunks": 5,
                "query_rows": 7,
                "responses": 1024,
            },
            "pages": stage
            | {
                "order": 1,
                "steps": 600,
                "final": 0.1,
                "data": {"pages": {"path": "data/pages_256", "weight": 1.0}},
                "max_chunk_len": 256,
                # One pack: 2,304 positions of documents, 3,584 of questions with their answers.
                "contexts": 12,
                "chunks": 12,
                "ctx_rows": 4,
                "ctx_tokens": 576,
                "row_chunks": 4,
                "query_rows": 7,
                "responses": 1024,
            },
        }
    )
    return config
