"""Needles past the window of SmolLM2-135M-Instruct: up to 32 chunks, with gates that let empty ones fall silent.

Goes on from the hypernetwork of `configs/niah_smollm2_chunks.py`. At 40 chunks and more, what breaks is the sum of the
noise of those that hold no needle; every adapter row gets a gate here, and most chunks of most documents are empty.

    d2l train --config configs/niah_smollm2_far.py --workdir runs/niah_smollm2_far

Useful override: --config.init=runs/niah_smollm2_chunks/hypernet
"""

import ml_collections

from configs import niah_smollm2_chunks


def get_config() -> ml_collections.ConfigDict:
    config = niah_smollm2_chunks.get_config()
    config.init = "runs/niah_smollm2_chunks/hypernet"
    config.hypernet.row_gate = True
    config.lr_multipliers.gate = 30.0  # one vector a layer, and hundreds of updates to turn it
    config.max_chunk_len = 2048
    stage = config.stages.chunks
    stage.update({"contexts": 12, "max_tokens": 768, "max_chunk_len": 384, "chunk_counts": (1, 1, 2, 4, 8, 16, 32)})
    stage.update({"max_chunks": 32, "chunks": 80, "row_chunks": 8, "ctx_rows": 20, "steps": 400, "final": 0.05})
    return config
