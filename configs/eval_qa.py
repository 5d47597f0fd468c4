"""Questions about pages of people who do not exist: quality by length, robustness, and what every method costs.

    d2l eval --config configs/eval_qa.py --workdir runs/eval_qa --config.hypernet=runs/smollm2_qa_stage2/hypernet

Published sets are suites too, as --config.suites.records.data=squad with its `place`; see configs/eval_sets.py.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.kind = "eval"
    config.target = ""  # the default target
    config.hypernet = "checkpoints/niah_smollm2"
    config.dtype = "auto"
    config.max_new_tokens = 32
    config.metrics = ("f1", "precision", "recall", "rouge_l", "exact_match", "kl")
    config.methods = ml_collections.ConfigDict(
        {"in_context": {}, "no_context": {}, "d2l": {}, "bm25": {}, "embedding": {}, "kv_compaction": {}}
    )
    prompt = "Answer the following question. Output only the answer and do not output any other words.\n\nQuestion: {}"
    pages = {"data": "biographies", "split": "test", "prompt": prompt}
    few = pages | {"documents": 10, "queries": 2, "tokens": (128, 512)}
    config.suites = ml_collections.ConfigDict(
        {
            "records": pages | {"documents": 40, "queries": 4, "tokens": (64, 1024)},
            "contradiction": pages | {"documents": 10, "queries": 2, "tokens": (128, 512)},
            "interference": few,
            "several": few | {"together": 3},
            "swapped": few,
            "scale": few | {"scales": (0.0, 0.5, 1.0, 1.5, 2.0)},
        }
    )
    return config
