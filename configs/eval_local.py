"""Documents of one's own: held-out records, for example of `d2l selfgen`, small enough for two CPU cores.

    d2l eval --config configs/eval_local.py --workdir runs/eval_local \\
        --config.suites.records.path=DIR --config.hypernet=DIR/hypernet

`documents` 0 takes all of them. Useful override: --config.suites.records.documents=40
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
        {"in_context": {}, "no_context": {}, "d2l": {}, "bm25": {}, "kv_compaction": {}}
    )
    config.suites = ml_collections.ConfigDict(
        {"records": {"data": "records", "path": "", "documents": 0, "queries": 2, "tokens": (1, 1024)}}
    )
    return config
