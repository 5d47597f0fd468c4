"""Context distillation against D2L on one document of about 1,000 tokens: quality, seconds, bytes (paper section 4.3).

    d2l eval --config configs/eval_cd.py --workdir runs/eval_cd

The paper's update cost on SQuAD: D2L below 1 s and 2 GB; distillation on the evaluation's own queries about 40 s, on 20
generated queries above 100 s and 40 GB. The release trains 300 epochs at 1e-4, here it is a fifth of them at thrice the
rate. All of it takes 12 minutes on two cores. Useful override: --config.methods.cd_oracle.epochs=300
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.kind = "eval"
    config.target = ""  # the default target
    config.hypernet = "checkpoints/niah_smollm2"
    config.dtype = "auto"
    config.max_new_tokens = 24
    config.metrics = ("exact_match", "recall", "f1", "rouge_l", "kl")
    config.methods = ml_collections.ConfigDict(
        {
            "in_context": {},
            "no_context": {},
            "d2l": {},
            "cd_oracle": {"epochs": 60, "lr": 3e-4},
            "cd_generated": {"epochs": 60, "lr": 3e-4, "questions": 6},
            "kv_compaction": {},
        }
    )
    prompt = "Answer the following question. Output only the answer and do not output any other words.\n\nQuestion: {}"
    config.suites = ml_collections.ConfigDict(
        {
            "needle": {"kind": "records", "data": "needles", "documents": 1, "tokens": (950, 1050), "seed": 1},
            "page": {
                "kind": "records",
                "data": "biographies",
                "documents": 1,
                "queries": 4,
                "tokens": (950, 1050),
                "prompt": prompt,
            },
        }
    )
    return config
