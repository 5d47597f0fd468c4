"""RULER's needle tasks that `checkpoints/keys_smollm2` was not made for, and how many keys an adapter holds.

    d2l eval --config configs/eval_keys_rest.py --workdir runs/eval_keys_rest

multikey_2 is a document of needles alone, 5, 14, 28 and 51 of them at these lengths: the curve over the number of keys.
`d2l_all` keeps every chunk where the card keeps eight. `recall` is the share of the wanted values that are named. One
core: half an hour. Useful override: --config.hypernet=FOLDER
"""

import ml_collections

# Tokens, and documents.
KEYS = (((100, 128), 20), ((256, 384), 20), ((512, 768), 10), ((1024, 1280), 10))
OTHERS = {"multikey_3": 10, "multivalue": 20, "multiquery": 20}


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.kind = "eval"
    config.target = ""  # the default target
    config.hypernet = "checkpoints/keys_smollm2"
    config.dtype = "auto"
    config.max_new_tokens = 200  # the target lists what it is asked for in sentences
    config.metrics = ("contains", "recall")
    config.methods = ml_collections.ConfigDict(
        {"in_context": {}, "d2l": {}, "d2l_all": {"method": "d2l", "keep_chunks": 0}}
    )
    suite = {"kind": "records", "data": "ruler", "short": False}
    config.suites = ml_collections.ConfigDict()
    for tokens, documents in KEYS:
        keys = {"task": "multikey_2", "tokens": tokens, "documents": documents}
        config.suites[f"multikey_2_{tokens[1]}"] = suite | keys
    for task, documents in OTHERS.items():
        config.suites[f"{task}_384"] = suite | {"task": task, "tokens": (256, 384), "documents": documents}
    return config
