"""Needles far past the window of SmolLM2-135M-Instruct (8,192 tokens), by length and depth (paper section 4.1).

    d2l eval --config configs/eval_niah_long.py --workdir runs/eval_niah_long

Two cores that tests shared in part: 51 minutes. Useful override: --config.hypernet=FOLDER
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.kind = "eval"
    config.target = ""  # the default target
    config.hypernet = "checkpoints/niah_smollm2"
    config.dtype = "auto"
    config.max_new_tokens = 16
    config.metrics = ("exact_match",)
    config.methods = ml_collections.ConfigDict({"d2l": {}})
    config.suites = ml_collections.ConfigDict(
        {
            "inside": {
                "kind": "needles",
                "lengths": ((32, 256), (1024, 2048), (8000, 8192)),
                "depths": 5,
                "samples": 40,
            },
            "far": {"kind": "needles", "lengths": ((16000, 16384), (40000, 40960)), "depths": 5, "samples": 10},
            "sixteen_windows": {"kind": "needles", "lengths": ((130000, 131072),), "depths": 5, "samples": 3},
        }
    )
    return config
