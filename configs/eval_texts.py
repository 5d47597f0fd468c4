"""Passages of Wikipedia with questions written by hand, held-out pages about people, and an unrelated page.

    d2l eval --config configs/eval_texts.py --workdir runs/eval_texts

The suite `unrelated` asks for common knowledge while a page is known that says nothing of it: what an adapter costs.
Useful override: --config.hypernet=FOLDER
"""

import ml_collections

from configs import eval_pages


def get_config() -> ml_collections.ConfigDict:
    config = eval_pages.get_config()
    config.hypernet = "checkpoints/texts_smollm2"
    pages = config.suites.to_dict()
    prompt = {"prompt": pages["short"]["prompt"]}
    held_out = {"kind": "records", "data": "records", "path": "checkpoints/texts_smollm2/held_out.jsonl"}
    config.suites = ml_collections.ConfigDict(
        {
            "real": held_out | prompt | {"documents": 0},  # all of them
            "short": pages["short"],
            "middle": pages["middle"],
            "unrelated": pages["short"] | {"data": "unrelated", "documents": 30, "tokens": (48, 144)},
        }
    )
    return config
