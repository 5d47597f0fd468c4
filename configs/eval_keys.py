"""RULER's needles with UUIDs and with eight keys, document absent.

    d2l eval --config configs/eval_keys.py --workdir runs/eval_keys

Answers are sentences; `contains` says whether the value stands in them, as RULER's own string match. It has
not run to its end yet. Useful override: --config.hypernet=FOLDER
"""

import ml_collections

TASKS = ("single_1", "single_2", "single_3", "multikey_1")
LENGTHS = (((256, 384), 20), ((1024, 2048), 10), ((8000, 8192), 5))  # tokens and documents


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.kind = "eval"
    config.target = ""  # the default target
    config.hypernet = "checkpoints/keys_smollm2"
    config.dtype = "auto"
    config.max_new_tokens = 64
    config.metrics = ("contains",)
    config.methods = ml_collections.ConfigDict({"d2l": {}})
    config.suites = ml_collections.ConfigDict()
    for tokens, documents in LENGTHS:
        for task in TASKS:
            suite = {"kind": "records", "data": "ruler", "short": False, "task": task}
            config.suites[f"{task}_{tokens[1]}"] = suite | {"tokens": tokens, "documents": documents}
    return config
