"""Pages about people who do not exist, held out with their names, phrasings and questions: by length, and an unrelated one.

    d2l eval --config configs/eval_pages.py --workdir runs/eval_pages

Useful override: --config.hypernet=FOLDER
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.kind = "eval"
    config.target = ""  # the default target
    config.hypernet = "checkpoints/pages_smollm2"
    config.dtype = "auto"
    config.max_new_tokens = 32
    config.metrics = ("f1", "exact_match", "recall", "kl")
    config.methods = ml_collections.ConfigDict({"in_context": {}, "no_context": {}, "d2l": {}})
    pages = {"kind": "records", "data": "biographies", "split": "test", "prompt": "{}\nReply with only the answer."}
    config.suites = ml_collections.ConfigDict(
        {
            "short": pages | {"documents": 60, "queries": 4, "tokens": (24, 96)},
            "middle": pages | {"documents": 30, "queries": 4, "tokens": (96, 192)},
            "long": pages | {"documents": 20, "queries": 4, "tokens": (192, 384)},
            "unrelated": pages | {"kind": "interference", "documents": 30, "queries": 2, "tokens": (24, 192)},
        }
    )
    return config
