"""What SmolLM2-135M-Instruct itself says with a document in its prompt (KL): more of what people ask about real text.

From the hypernetwork of `configs/smollm2_distil_memory.py`, on the target's answers to questions about nearly every
sentence of passages of Wikipedia (`d2l data questions`), beside those that it had. The launcher makes the data, trains
and evaluates:

    launch/smollm2_distil.sh
    d2l train --config configs/smollm2_distil_open.py --workdir runs/smollm2_distil_open

Two CPU cores: 11 s an update, half an hour, 16 GB.
Useful override: --config.init=checkpoints/distil_smollm2, from the shipped weights on
"""

import ml_collections

from configs import smollm2_distil_memory


def get_config() -> ml_collections.ConfigDict:
    config = smollm2_distil_memory.get_config()
    config.init = "runs/smollm2_distil_memory/hypernet"
    config.checkpoint_every = 25
    shares = {"said_open": 0.5, "said_wiki": 0.3, "said_128": 0.2}
    stage = config.stages.fall.to_dict() | {
        "order": 0,
        "steps": 130,
        "warmup": 5,
        "lr_factor": 0.6,
        "data": {name: {"path": f"data/{name}", "weight": share} for name, share in shares.items()},
    }
    config.stages = ml_collections.ConfigDict({"open": stage})
    return config
