"""Documents on SmolLM2-135M-Instruct, one chunk each: answers to questions (paper section 4, at a laptop's size).

A hypernetwork of 39M parameters reads the input of every block of the target and writes rank-8 LoRA weights for every
`down_proj`. It learns to give what the target itself says with the document in its prompt, from stored answers with
their top-16 log-probabilities: about documents of this machine with generated questions, and about pages of people who
do not exist, whose questions nobody answers without the page.

    d2l data corpus --max-tokens 512 --min-tokens 48 --out data/corpus
    d2l selfgen data/corpus --limit 4000 --per-round 3 --out data/smollm2/corpus
    d2l data biographies --samples 4000 --lengths 64-512 --out data/biographies
    d2l selfgen data/biographies --questions keep --closed-qa 0.5 --out data/smollm2/biographies
    d2l train --config configs/smollm2_qa_stage1.py --workdir runs/smollm2_qa_stage1

`configs/smollm2_qa_stage2.py` goes on from here with several chunks; `launch/local_pipeline.sh` runs all of it at a
small size. That is its only run so far. Useful override: --config.stages.one_chunk.steps=100
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.target = ""  # the default target
    config.init = ""  # a hypernet folder to start from
    config.seed = 0
    config.dtype = "bfloat16"
    config.save_dtype = "bfloat16"
    config.loss = "kl"
    config.remat = "full"  # a tenth of the memory: without it two cores of a laptop need 20 GB
    config.l1 = 0.0  # 0.1 collapses the adapters of targets this small
    config.neftune = 5.0
    config.max_chunk_len = 512  # what the card recommends for use
    config.checkpoint_every = 20
    config.keep = 2

    config.hypernet = ml_collections.ConfigDict(
        {
            "target_modules": ("down_proj",),
            "features": "per_layer_activations",
            "num_latents": 8,
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

    # Weights are shares of the documents.
    data = {
        "corpus": {"path": "data/smollm2/corpus", "weight": 0.6},
        "biographies": {"path": "data/smollm2/biographies", "weight": 0.4},
    }
    config.stages = ml_collections.ConfigDict(
        {
            "one_chunk": {
                "order": 0,
                "steps": 600,
                "warmup": 20,
                "final": 0.1,
                "lr_factor": 1.0,
                "data": data,
                "max_chunk_len": 512,
                # One pack: 2,240 positions of documents, 3,072 of questions with their answers.
                "contexts": 8,
                "chunks": 8,
                "ctx_rows": 4,
                "ctx_tokens": 560,
                "row_chunks": 4,
                "query_rows": 6,
                "query_tokens": 512,
                "row_contexts": 4,
                "responses": 1536,
                "teacher_top_k": 16,
            }
        }
    )
    return config
