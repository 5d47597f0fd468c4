"""Pages about people on SmolLM2-135M-Instruct: what the target itself says with the page in its prompt (KL).

Goes on from the hypernetwork of `configs/smollm2_pages.py`, which knows facts of short pages, on pages of up to 200
tokens in 1 to 3 chunks of whole sentences, with stored answers and their top-16 log-probabilities.

    d2l data biographies --samples 3000 --lengths 24-200 --queries 3 --seed 8 --out data/pages_to_teach
    d2l selfgen data/pages_to_teach --limit 1024 --questions keep --closed-qa 0.7 --max-new-tokens 32 \\
        --out data/pages_taught
    d2l train --config configs/smollm2_pages_taught.py --workdir runs/smollm2_pages_taught

Two CPU cores alone, without AMX: 18 s an update. Run once: it learns how the target puts its answers, and forgets what
they are about (docs/log.md); nothing of it is shipped. Useful override: --config.stages.taught.steps=400
"""

import ml_collections

from configs import smollm2_pages


def get_config() -> ml_collections.ConfigDict:
    config = smollm2_pages.get_config()
    config.init = "checkpoints/pages_smollm2"
    config.loss = "kl"
    config.stages = ml_collections.ConfigDict(
        {
            "taught": {
                "order": 0,
                "steps": 160,
                "warmup": 6,
                "final": 0.1,
                "lr_factor": 1.0,
                "data": {"pages": {"path": "data/pages_taught", "weight": 1.0}},
                "min_chunk_len": 24,
                "max_chunk_len": 120,
                "chunk_at": "sentences",
                "max_chunks": 3,
                # One pack: 2,200 positions of documents, 2,640 of questions with their answers.
                "contexts": 18,
                "chunks": 30,
                "ctx_rows": 5,
                "ctx_tokens": 440,
                "row_chunks": 8,
                "query_rows": 6,
                "query_tokens": 440,
                "row_contexts": 10,
                "responses": 960,
                "teacher_top_k": 16,
            }
        }
    )
    return config
