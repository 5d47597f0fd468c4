"""Needles past the window of SmolLM2-135M-Instruct (paper section 4.1, at a laptop's size).

Goes on from the single chunks of `configs/niah_smollm2.py`. Short documents in 1-16 chunks, longer ones in up to 32,
then chunks of up to 1,024 tokens again, since chunks of 20 tokens make it forget those. Most chunks of a document hold
no needle; every adapter row has a gate. In use the loudest chunk of a document stays, however many it has.

    d2l train --config configs/niah_smollm2_far.py --workdir runs/niah_smollm2_far

Two CPU cores alone: about 5 s an update in the first stage, 9 s in the others, 13 GB. Useful override:
--config.init=FOLDER
"""

import ml_collections

from configs import niah_smollm2


def get_config() -> ml_collections.ConfigDict:
    config = niah_smollm2.get_config()
    config.init = "runs/niah_smollm2/hypernet"
    config.hypernet.row_gate = True
    config.lr = 2e-4
    config.lr_multipliers.gate = 30.0  # one vector a layer, and hundreds of updates to turn it
    config.update({"max_chunk_len": 1024, "chunk_overlap": 32, "keep_chunks": 1})
    config.remat = "full"  # 32 chunks a document take more than 24 GB without
    stage = {"warmup": 10, "lr_factor": 1.0, "min_tokens": 0, "contexts": 12}
    chunks = {"max_tokens": 256, "max_chunk_len": 128, "min_chunk_len": 12, "max_chunks": 16, "chunks": 48}
    far = {"max_tokens": 768, "max_chunk_len": 384, "min_chunk_len": 12, "max_chunks": 32, "chunks": 80}
    long = {"max_tokens": 1024, "max_chunk_len": 1024, "min_chunk_len": 96, "max_chunks": 8, "chunks": 40}
    config.stages = ml_collections.ConfigDict(
        {
            "chunks": stage | chunks | {"order": 0, "steps": 160, "final": 0.5},
            "far": stage | far | {"order": 1, "steps": 220, "final": 0.05},
            "long": stage | long | {"contexts": 16, "order": 2, "steps": 80, "final": 0.05, "lr_factor": 0.5},
        }
    )
    config.stages.chunks.chunk_counts = (1, 2, 2, 4, 4, 8, 8, 16)
    config.stages.far.update({"chunk_counts": (1, 1, 2, 4, 8, 16, 32), "row_chunks": 8, "ctx_rows": 20})
    config.stages.long.update({"chunk_counts": (1, 1, 2, 4, 8), "row_chunks": 8, "ctx_rows": 11})
    return config
