"""How near a hypernetwork comes to the target with the document in its prompt: KL on held-out pages and passages.

    d2l eval --config configs/eval_distil.py --workdir runs/eval_distil

Useful override: --config.hypernet=FOLDER
"""

import ml_collections

from configs import eval_texts


def get_config() -> ml_collections.ConfigDict:
    config = eval_texts.get_config()
    config.hypernet = "checkpoints/distil_smollm2"
    suites = config.suites.to_dict()
    config.suites = ml_collections.ConfigDict(
        {
            "short": suites["short"] | {"seed": 3},
            "middle": suites["middle"] | {"documents": 20, "seed": 3},
            "real": suites["real_2"],
            "unrelated": suites["unrelated"],
        }
    )
    return config
