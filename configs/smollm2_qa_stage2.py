"""Documents in 1 to 8 chunks on SmolLM2-135M-Instruct (paper section 4, second stage, at a laptop's size).

Goes on from the hypernetwork of `configs/smollm2_qa_stage1.py` on the same data, which that config says how to make, at
half its learning rate. A chunk has at most 128 tokens, so that documents of 512 come in four and more.

    d2l train --config configs/smollm2_qa_stage2.py --workdir runs/smollm2_qa_stage2

Useful override: --config.init=DIR, a hypernetwork to start from
"""

import ml_collections

from configs import smollm2_qa_stage1


def get_config() -> ml_collections.ConfigDict:
    config = smollm2_qa_stage1.get_config()
    config.init = "runs/smollm2_qa_stage1/hypernet"
    config.max_chunk_len = 256
    stage = config.stages.one_chunk.to_dict() | {
        "steps": 200,
        "lr_factor": 0.5,
        "max_chunks": 8,
        "min_chunk_len": 25,
        "max_chunk_len": 128,
        # One pack: 2,304 positions of documents, the rest as in stage 1.
        "contexts": 6,
        "chunks": 36,
        "ctx_rows": 6,
        "ctx_tokens": 384,
        "row_chunks": 8,
        "row_contexts": 2,
    }
    config.stages = ml_collections.ConfigDict({"chunks": stage})
    return config
