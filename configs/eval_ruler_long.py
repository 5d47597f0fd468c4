"""RULER's needle tasks far past the window of SmolLM2-135M-Instruct (8,192 tokens), document absent.

    d2l eval --config configs/eval_ruler_long.py --workdir runs/eval_ruler_long

Single needles, which `checkpoints/ruler_smollm2` is trained on, at every length; the other tasks at one. `recall` is
the share of the wanted values that are named. Two cores that tests shared: about 45 minutes. Useful override:
--config.hypernet=FOLDER
"""

import ml_collections

from d2l.data.ruler import TASKS

TRAINED = ("single_1", "single_2")
# Tokens and documents.
LENGTHS = (((128, 256), 60), ((1024, 2048), 60), ((8000, 8192), 20), ((16000, 16384), 10), ((40000, 40960), 10))


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.kind = "eval"
    config.target = ""  # the default target
    config.hypernet = "checkpoints/ruler_smollm2"
    config.dtype = "auto"
    config.max_new_tokens = 48
    config.metrics = ("exact_match", "recall")
    config.methods = ml_collections.ConfigDict({"d2l": {}})
    config.suites = ml_collections.ConfigDict()
    suite = {"kind": "records", "data": "ruler", "words": "few"}
    for task in TASKS:
        for tokens, documents in LENGTHS if task in TRAINED else (((1024, 2048), 20),):
            config.suites[f"{task}_{tokens[1]}"] = suite | {"task": task, "tokens": tokens, "documents": documents}
    return config
