"""What SmolLM2-135M-Instruct itself says with a document in its prompt, learned from it token by token (KL).

From `checkpoints/pages_smollm2`, which knows a page's facts and says them in a word: here the target answers in its own
manner, as unsure as it is with the document. Stages: pages about people whose answers end, half of the loss where the
page tells most; longer pages, answers without an end among them, and passages of Wikipedia; the same with a KL that
also counts the tokens which the teacher's likeliest leave out. The launcher makes the data, trains and evaluates:

    launch/smollm2_distil.sh
    d2l train --config configs/smollm2_distil.py --workdir runs/smollm2_distil

Two CPU cores: 13 s an update. Useful override: --config.checkpoint_every=10
"""

import ml_collections

from configs import smollm2_pages


def get_config() -> ml_collections.ConfigDict:
    config = smollm2_pages.get_config()
    config.init = "checkpoints/pages_smollm2"
    said = config.stages.said.to_dict() | {
        "max_chunk_len": 100,
        # One pack: 1,600 positions of documents, 2,640 of questions with their answers.
        "contexts": 17,
        "chunks": 26,
        "ctx_rows": 4,
        "ctx_tokens": 400,
        "row_chunks": 8,
        "responses": 900,
    }
    longer = said | {
        "contexts": 14,
        "ctx_tokens": 440,
        "responses": 1000,
        "data": {
            "short": {"path": "data/said_128", "weight": 0.25},
            "long": {"path": "data/said_160", "weight": 0.55},
            "text": {"path": "data/said_wiki", "weight": 0.2},
        },
    }
    config.stages = ml_collections.ConfigDict(
        {
            "pages": said
            | {
                "order": 0,
                "steps": 66,
                "final": 1.0,
                "focus": 0.5,
                "data": {"pages": {"path": "data/said_128", "weight": 1.0}},
            },
            "longer": longer | {"order": 1, "steps": 84, "final": 0.6, "focus": 0.25},
            "others": longer | {"order": 2, "steps": 130, "lr_factor": 0.7, "final": 0.03, "others": True},
        }
    )
    return config
