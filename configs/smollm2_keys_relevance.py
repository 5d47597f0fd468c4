"""Which chunks of a document stay, learned for `checkpoints/keys_smollm2` from what answers quote; all else stays.

Documents of `configs/smollm2_keys.py` that have other text around their needles (its launcher makes them and runs this
after it). The one update of the distillation has a learning rate of 0.

    d2l train --config configs/smollm2_keys_relevance.py --workdir runs/smollm2_keys_relevance

One CPU core: a quarter of an hour.
Useful override: --config.init=FOLDER
"""

import ml_collections

from configs import smollm2_keys


def get_config() -> ml_collections.ConfigDict:
    config = smollm2_keys.get_config()
    config.init = "runs/smollm2_keys/hypernet"
    config.lr = 0.0
    config.hypernet.relevance = True
    config.reading_steps = 0
    config.relevance_steps = 300
    # A chunk of one needle among eight holds a third of an answer at least, other text nothing.
    config.keep_loudness = 0.2
    stage = config.stages.longer.to_dict() | {"order": 0, "steps": 1, "warmup": 0, "lr_factor": 1.0}
    stage["data"] = {
        "keys_long": {"path": "data/ruler_keys_long", "weight": 0.4},
        "texts_long": {"path": "data/ruler_texts_long", "weight": 0.5},
        "single": {"path": "data/ruler_single_quoted", "weight": 0.1},
    }
    config.stages = ml_collections.ConfigDict({"relevance": stage})
    return config
