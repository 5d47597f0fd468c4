"""Needles past the window of SmolLM2-135M-Instruct: 1-16 chunks (paper section 4.1, at a laptop's size).

Goes on from the hypernetwork of `configs/niah_smollm2.py`, which has only seen single chunks. Contexts stay at 256
tokens; most chunks of a context hold no needle, and their adapters must add nothing to the one that does.

    d2l train --config configs/niah_smollm2_chunks.py --workdir runs/niah_smollm2_chunks

Useful override: --config.init=runs/niah_smollm2/hypernet
"""

import ml_collections

from configs import niah_smollm2


def get_config() -> ml_collections.ConfigDict:
    config = niah_smollm2.get_config()
    config.init = "checkpoints/niah_smollm2"
    config.lr = 2e-4
    config.max_chunk_len = 4096
    stage = {"warmup": 10, "lr_factor": 1.0, "min_tokens": 0, "max_tokens": 256, "contexts": 12, "chunks": 48}
    cut = {"max_chunk_len": 128, "min_chunk_len": 12, "max_chunks": 16, "chunk_counts": (1, 2, 2, 4, 4, 8, 8, 16)}
    config.stages = ml_collections.ConfigDict({"chunks": stage | cut | {"order": 0, "steps": 240, "final": 0.1}})
    return config
