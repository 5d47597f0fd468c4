"""Needle in a haystack on SmolLM2-135M-Instruct (paper section 4.1, at a laptop's size).

A hypernetwork of 38M parameters reads block 7 of the target and writes rank-8 LoRA weights for every `down_proj`.

    d2l train --config configs/niah_smollm2.py --workdir runs/niah_smollm2

Two CPU cores: 5 to 6 s a step on the needle alone. Useful override: --config.lr=1e-4
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.target = ""  # the default target
    config.init = ""  # a hypernet folder to start from
    config.seed = 0
    config.dtype = "bfloat16"
    config.save_dtype = "bfloat16"
    config.loss = "ce"
    config.l1 = 0.0
    config.max_chunk_len = 2048  # what the card recommends for use
    config.checkpoint_every = 25
    config.keep = 2

    config.hypernet = ml_collections.ConfigDict(
        {
            "target_modules": ("down_proj",),
            "features": "early_exit",
            "layer_idx": 7,
            "aggregator": "direct",
            "num_blocks": 2,
            "latent_size": 256,
            "num_heads": 8,
            "num_kv_heads": 8,
            "head_dim": 32,
            "rank": 8,
            "scale": 16.0,
            "scaler_b_init": 0.01,
        }
    )

    config.lr = 3e-4
    config.lr_multipliers = ml_collections.ConfigDict({"scaler_B": 0.2})
    config.optimizer = ml_collections.ConfigDict({"b2": 0.95, "clip": 0.3})

    stage = {"warmup": 10, "final": 0.3, "lr_factor": 1.0, "max_chunk_len": 2048, "contexts": 32, "min_tokens": 0}
    config.stages = ml_collections.ConfigDict(
        {
            "needle": stage | {"order": 0, "steps": 250, "max_tokens": 0},
            "haystack": stage | {"order": 1, "steps": 220, "max_tokens": 256, "lr_factor": 0.67},
            "long": stage | {"order": 2, "steps": 40, "max_tokens": 1024, "lr_factor": 0.3},
        }
    )
    return config
