"""Needles past the window of SmolLM2-135M-Instruct: up to 32 chunks, with gates that let empty ones fall silent.

Goes on from the single chunks of `configs/niah_smollm2.py`. At 40 chunks and more, what breaks is the sum of the noise
of those that hold no needle; every adapter row gets a gate here, and most chunks of most documents are empty. First
short documents in 1-16 chunks, as in `configs/niah_smollm2_chunks.py`, then longer ones in up to 32.

    d2l train --config configs/niah_smollm2_far.py --workdir runs/niah_smollm2_far

Useful override: --config.stages.far.steps=400
"""

import ml_collections

from configs import niah_smollm2_chunks


def get_config() -> ml_collections.ConfigDict:
    config = niah_smollm2_chunks.get_config()
    config.hypernet.row_gate = True
    config.lr_multipliers.gate = 30.0  # one vector a layer, and hundreds of updates to turn it
    config.update({"max_chunk_len": 1024, "chunk_overlap": 32, "keep_chunks": 4})
    config.remat = "full"  # 32 chunks a document take more than 24 GB without
    chunks = config.stages.chunks
    chunks.update({"steps": 160, "final": 0.5})
    config.stages.far = chunks.copy_and_resolve_references()
    far = config.stages.far
    far.update({"order": 1, "steps": 220, "final": 0.05, "max_tokens": 768, "max_chunk_len": 384, "max_chunks": 32})
    far.update({"chunk_counts": (1, 1, 2, 4, 8, 16, 32), "chunks": 80, "row_chunks": 8, "ctx_rows": 20})
    return config
