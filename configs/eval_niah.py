"""Needles: position x length, every method, the shipped hypernetwork of SmolLM2 (paper section 4.1).

    d2l eval --config configs/eval_niah.py --workdir runs/eval_niah

Not timed yet. Useful override: --config.suites.needles.samples=20
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.kind = "eval"
    config.target = ""  # the default target
    config.hypernet = "checkpoints/niah_smollm2"
    config.dtype = "auto"
    config.max_new_tokens = 24
    config.metrics = ("exact_match", "recall", "f1", "kl")
    config.methods = ml_collections.ConfigDict(
        {
            "in_context": {},
            "no_context": {},
            "d2l": {},
            "bm25": {"count": 1},
            "embedding": {"count": 1},
            "llmlingua2": {},
            "kv_compaction": {},
            "text_to_lora": {},
            "generative_adapter": {},
        }
    )
    config.suites = ml_collections.ConfigDict(
        {
            "needles": {"lengths": ((32, 127), (128, 255), (512, 1023), (1024, 2047)), "depths": 5, "samples": 2},
            "interference": {"data": "needles", "documents": 8, "tokens": (128, 255)},
            "swapped": {"data": "needles", "documents": 8, "tokens": (128, 255)},
            "scale": {"data": "needles", "documents": 8, "tokens": (128, 255), "scales": (0.0, 0.5, 1.0, 1.5, 2.0)},
        }
    )
    return config
