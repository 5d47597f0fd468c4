"""What SmolLM2-135M-Instruct itself says with a document in its prompt (KL), with a memory of the document's tokens.

From the hypernetwork of `configs/smollm2_distil.py`, which says a part of it: two layers also get a row for every token
of the document (`docs/memory.md`). Pages about people and passages of Wikipedia. The launcher makes the data, trains
and evaluates:

    launch/smollm2_distil.sh
    d2l train --config configs/smollm2_distil_memory.py --workdir runs/smollm2_distil_memory

Two CPU cores: 8.3 s an update, 25 minutes, 16 GB. What is shipped had 70 updates in the last stage (its card).
Useful override: --config.init=checkpoints/distil_smollm2, from the shipped weights on
"""

import ml_collections

from configs import smollm2_pages


def get_config() -> ml_collections.ConfigDict:
    config = smollm2_pages.get_config()
    config.init = "runs/smollm2_distil/hypernet"
    config.hypernet.update({"memory_layers": (22, 26), "memory_tokens": 114, "memory_size": 32, "turn_tokens": (8, 6)})
    config.lr_multipliers.memory = 10.0
    said = config.stages.said.to_dict() | {
        "others": True,
        "max_chunk_len": 100,
        # One pack: 1,760 positions of documents, 2,640 of questions with their answers.
        "contexts": 14,
        "chunks": 26,
        "ctx_rows": 4,
        "ctx_tokens": 440,
        "row_chunks": 8,
        "row_contexts": 4,
        "max_chunks": 2,
        "responses": 1000,
    }

    def data(pages: float, plain: float, blanks: float) -> dict:
        shares = {"said_160": pages, "said_wiki": plain, "said_cloze": blanks}
        return {"data": {name: {"path": f"data/{name}", "weight": share} for name, share in shares.items()}}

    config.stages = ml_collections.ConfigDict(
        {
            "memory": said | data(0.5, 0.2, 0.3) | {"order": 0, "steps": 75, "final": 1.0},
            "fall": said | data(0.4, 0.25, 0.35) | {"order": 1, "steps": 100, "lr_factor": 0.8, "final": 0.03},
        }
    )
    return config
