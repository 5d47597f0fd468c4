"""Needle in a haystack on Mistral-7B-Instruct-v0.2 (paper section 4.1).

640,000 contexts of 32 to 256 tokens, seen once, cut into 1 to 8 chunks. The hypernetwork reads one feature, the output
of block 8 of 32, through 208 latents.

Expected: perfect retrieval at the trained lengths; how far beyond them is published for gemma-2-2b-it only
(configs/gemma2_2b_niah.py).

    d2l train --config configs/mistral_7b_niah.py --workdir runs/mistral_7b_niah
    d2l eval --target mistralai/Mistral-7B-Instruct-v0.2 --hypernet runs/mistral_7b_niah/hypernet --tasks niah \
        --methods d2l --lengths 32-256,4096-8192,32768-40960

Estimated at 40 % of peak: 0.3 hours on v5e-64. Useful override: --config.packs=16, no accumulation on 16 shards.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.target = "mistralai/Mistral-7B-Instruct-v0.2"
    config.init = ""  # a hypernet folder to start from
    config.seed = 0
    config.dtype = "bfloat16"
    config.save_dtype = "bfloat16"
    config.loss = "ce"
    config.l1 = 2.0
    config.neftune = 0.0
    config.remat = "full"
    config.max_chunk_len = 1024  # what the card recommends for use
    config.checkpoint_every = 100
    config.keep = 2

    config.mesh = ml_collections.ConfigDict({"data": 1, "fsdp": -1, "model": 4})
    config.packs = 64  # each chip takes one at a time

    config.hypernet = ml_collections.ConfigDict(
        {
            "target_modules": ("down_proj",),
            "features": "early_exit",
            "layer_idx": 8,
            "latent_size": 512,
            "num_latents": 208,
            "num_blocks": 8,
            "rank": 8,
            "scale": 2 * 8**1.5,
            "scaler_b_init": 0.0,
        }
    )

    config.lr = 4e-5
    config.lr_multipliers = ml_collections.ConfigDict({})
    config.optimizer = ml_collections.ConfigDict({"b2": 0.999, "clip": 1.0, "weight_decay": 0.01})

    config.stages = ml_collections.ConfigDict(
        {
            "needles": {
                "order": 0,
                "steps": 1250,
                "warmup": 100,
                "final": 0.0025,
                "lr_factor": 1.0,
                "contexts": 512,
                "chunks": 1536,
                "row_chunks": 8,
                "ctx_rows": 448,  # 7 a pack, each as long as the longest document
                "min_tokens": 32,
                "max_tokens": 256,
                "max_chunks": 8,
                "min_chunk_len": 25,
                "max_chunk_len": 512,
            }
        }
    )
    return config
