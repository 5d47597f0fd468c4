"""Needles past the window of SmolLM2-135M-Instruct, settled: more documents an update, at a falling learning rate.

Goes on from the hypernetwork of `configs/niah_smollm2_chunks.py`, which errs by a digit now and then. Did not help by
itself: docs/log.md has the numbers. Twice as many documents an update; half of them are one or two chunks; chunks
share rows.

    d2l train --config configs/niah_smollm2_settle.py --workdir runs/niah_smollm2_settle

Useful override: --config.init=runs/niah_smollm2_chunks/hypernet
"""

import ml_collections

from configs import niah_smollm2_chunks


def get_config() -> ml_collections.ConfigDict:
    config = niah_smollm2_chunks.get_config()
    config.init = "runs/niah_smollm2_chunks/hypernet"
    config.lr = 1e-4
    config.max_chunk_len = 2048
    stage = config.stages.chunks
    stage.update({"contexts": 24, "chunks": 64, "chunk_counts": (1, 1, 2, 2, 4, 8, 16), "max_chunk_len": 256})
    stage.update({"row_chunks": 8, "ctx_rows": 20, "steps": 100, "final": 0.05})
    return config
