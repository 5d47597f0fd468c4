"""Pages about people who do not exist, held out with their names, phrasings and questions, and an unrelated page.

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
            "short": pages | {"documents": 20, "queries": 2, "tokens": (12, 72)},
            "middle": pages | {"documents": 10, "queries": 2, "tokens": (72, 144)},
            "long": pages | {"documents": 8, "queries": 2, "tokens": (192, 384)},
            "unrelated": pages | {"kind": "interference", "documents": 6, "queries": 2, "tokens": (12, 72)},
        }
    )
    return config
