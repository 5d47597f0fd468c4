"""RULER's needle tasks far past the window of SmolLM2-135M-Instruct (8,192 tokens), document absent.

    d2l eval --config configs/eval_ruler_long.py --workdir runs/eval_ruler_long

The tasks that `checkpoints/ruler_smollm2` is trained on at every length, the others at one. Answers are sentences;
`contains` says whether the value stands in them, as RULER's own string match, and `recall` which share of several
values does. Useful override: --config.hypernet=FOLDER
"""

import ml_collections

from d2l.data.ruler import TASKS

TRAINED = ("single_1", "single_2", "single_3", "multikey_1")
# Tokens and documents.
LENGTHS = (((256, 384), 60), ((1024, 2048), 40), ((8000, 8192), 20), ((16000, 16384), 10), ((40000, 40960), 10))


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.kind = "eval"
    config.target = ""  # the default target
    config.hypernet = "checkpoints/ruler_smollm2"
    config.dtype = "auto"
    config.max_new_tokens = 64
    config.metrics = ("contains", "recall")
    config.methods = ml_collections.ConfigDict({"d2l": {}})
    config.suites = ml_collections.ConfigDict()
    suite = {"kind": "records", "data": "ruler", "short": False}
    # Short documents first: what is wrong shows there.
    for tokens, documents in LENGTHS:
        for task in TRAINED:
            config.suites[f"{task}_{tokens[1]}"] = suite | {"task": task, "tokens": tokens, "documents": documents}
    for task in TASKS:
        if task not in TRAINED:
            config.suites[f"{task}_2048"] = suite | {"task": task, "tokens": (1024, 2048), "documents": 20}
    return config
