"""Published QA sets (paper section 4.2): quality relative to in context, by length, and costs.

Expected of the paper's gemma-2-2b-it, ratio of F1 to in context: SQuAD .81-.83, DROP .66, ROPES .91, 2WikiMultihopQA
.86, MultiFieldQA .49, QASPER .54.

    d2l eval --config configs/eval_sets.py --workdir runs/eval_sets --config.hypernet=DIR

Sets come from the Hugging Face hub; a folder of their Parquet or JSONL files does as well:
--config.suites.squad.place=DIR. Not run yet. Useful override: --config.suites.squad.documents=50
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.kind = "eval"
    config.target = "google/gemma-2-2b-it"
    config.hypernet = "runs/gemma2_2b_main/hypernet"
    config.dtype = "bfloat16"
    config.max_new_tokens = 256
    config.metrics = ("f1", "precision", "recall", "rouge_l", "exact_match", "kl")
    config.methods = ml_collections.ConfigDict(
        {
            "in_context": {},
            "no_context": {},
            "d2l": {},
            "d2l_iterative": {"method": "d2l", "iterative": True},
            "cd_oracle": {},
            "cd_generated": {"questions": 20},
            "bm25": {},
            "embedding": {"embedder": "sentence-transformers"},
            "llmlingua2": {},
            "kv_compaction": {},
        }
    )

    def records(data: str, place: str, split: str, documents: int) -> dict:
        return {"kind": "records", "data": data, "place": place, "split": split, "documents": documents, "queries": 1}

    squad = records("squad", "hf:rajpurkar/squad", "validation", 500)
    config.suites = ml_collections.ConfigDict(
        {
            "squad": squad,
            "drop": records("drop", "hf:ucinlp/drop", "validation", 500),
            "ropes": records("ropes", "hf:allenai/ropes", "validation", 400),
            "2wikimqa": records("2wikimqa_e", "hf:THUDM/LongBench", "test", 200),
            "multifieldqa": records("multifieldqa_en_e", "hf:THUDM/LongBench", "test", 100),
            "qasper": records("qasper_e", "hf:THUDM/LongBench", "test", 150),
            "squad_interference": squad | {"kind": "interference"},
            "squad_swapped": squad | {"kind": "swapped"},
        }
    )
    return config
