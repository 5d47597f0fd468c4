"""What SmolLM2-135M-Instruct itself says with a document in its prompt, from a memory of the document's tokens (KL)."""

import ml_collections

from configs import smollm2_pages


def get_config() -> ml_collections.ConfigDict:
    config = smollm2_pages.get_config()
    config.init = "checkpoints/distil_smollm2"
    config.hypernet.update({"memory_layers": (22, 26), "memory_tokens": 114, "memory_size": 32, "turn_tokens": (8, 6)})
    config.lr_multipliers.memory = 10.0
    said = config.stages.said.to_dict() | {
        "order": 0,
        "steps": 250,
        "final": 0.03,
        "others": True,
        "max_chunk_len": 100,
        # One pack: 1,760 positions of documents, 2,640 of questions with their answers.
        "contexts": 14,
        "chunks": 26,
        "ctx_rows": 4,
        "ctx_tokens": 440,
        "row_chunks": 8,
        "responses": 1000,
        "max_chunks": 2,
        "row_contexts": 4,
        "data": {
            "pages": {"path": "data/said_160", "weight": 0.5},
            "plain": {"path": "data/said_wiki", "weight": 0.2},
            "blanks": {"path": "data/said_cloze", "weight": 0.3},
        },
    }
    config.stages = ml_collections.ConfigDict({"memory": said})
    return config
