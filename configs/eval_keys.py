"""RULER's needles with UUIDs and with eight keys, document absent, to five times the target's window.

    d2l eval --config configs/eval_keys.py --workdir runs/eval_keys

Answers are sentences; `contains` says whether the value stands in them, as RULER's own string match. RULER's own
prompts begin the reply with a sentence that names the key: so do the suites `begun_*`, eight keys again, where a key
cannot be misquoted. In the suite `few_words` keys of a document share words far more often than RULER's. Two cores,
one half of the suites on each: an hour. Useful override: --config.hypernet=FOLDER
"""

import ml_collections

TASKS = ("multikey_1", "single_3", "single_2", "single_1")
# Tokens, and documents of each task.
LENGTHS = (
    ((256, 384), (40, 40, 10, 5)),
    ((1024, 2048), (40, 40, 10, 5)),
    ((8000, 8192), (20, 10, 10, 10)),
    ((16000, 16384), (10, 10, 10, 10)),
    ((40000, 40960), (10, 10, 10, 10)),
)


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.kind = "eval"
    config.target = ""  # the default target
    config.hypernet = "checkpoints/keys_smollm2"
    config.dtype = "auto"
    config.max_new_tokens = 80
    config.metrics = ("contains",)
    config.methods = ml_collections.ConfigDict({"d2l": {}})
    suite = {"kind": "records", "data": "ruler", "short": False}
    few = suite | {"task": "multikey_1", "words": "few", "tokens": (256, 384), "documents": 20}
    config.suites = ml_collections.ConfigDict({"few_words": few})
    for tokens, counts in LENGTHS:
        for task, documents in zip(TASKS, counts, strict=True):
            config.suites[f"{task}_{tokens[1]}"] = suite | {"task": task, "tokens": tokens, "documents": documents}
        begun = {"task": "multikey_1", "tokens": tokens, "documents": counts[0], "begun": True}
        config.suites[f"begun_{tokens[1]}"] = suite | begun
    return config
