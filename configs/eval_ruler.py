"""RULER's needle tasks by length, document absent, in context and retrieved (Hsieh et al., 2024).

    d2l eval --config configs/eval_ruler.py --workdir runs/eval_ruler

`recall` is the share of the wanted values that are named. Not timed yet. Useful override: --config.hypernet=FOLDER
"""

import ml_collections

from d2l.data.ruler import TASKS

LENGTHS = ((128, 256), (512, 1024), (2048, 4096))


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.kind = "eval"
    config.target = ""  # the default target
    config.hypernet = "checkpoints/niah_smollm2"
    config.dtype = "auto"
    config.max_new_tokens = 64
    config.metrics = ("exact_match", "recall")
    config.methods = ml_collections.ConfigDict({"in_context": {}, "no_context": {}, "d2l": {}, "bm25": {"count": 1}})
    suite = {"kind": "records", "data": "ruler", "documents": 10}
    config.suites = ml_collections.ConfigDict()
    for task in TASKS:
        for low, high in LENGTHS:
            if (task, high) != ("multikey_1", 256):  # eight needles are longer
                config.suites[f"{task}_{high}"] = suite | {"task": task, "tokens": (low, high)}
    return config
