"""Passages of Wikipedia with questions written by hand, held-out pages about people, and an unrelated page.

    d2l eval --config configs/eval_texts.py --workdir runs/eval_texts

Of the two sets of passages, the shipped weights were chosen by the first. The suite `unrelated` asks for common
knowledge while a page is known that says nothing of it: what an adapter costs.
Useful override: --config.hypernet=FOLDER
"""

import ml_collections

from configs import eval_pages


def get_config() -> ml_collections.ConfigDict:
    config = eval_pages.get_config()
    config.hypernet = "checkpoints/texts_smollm2"
    pages = config.suites.to_dict()
    prompt = {"prompt": pages["short"]["prompt"]}
    held_out = {"kind": "records", "data": "records", "documents": 0} | prompt  # all of them
    folder = "checkpoints/texts_smollm2"
    config.suites = ml_collections.ConfigDict(
        {
            "real": held_out | {"path": f"{folder}/held_out.jsonl"},
            "real_2": held_out | {"path": f"{folder}/held_out_2.jsonl"},
            "short": pages["short"],
            "middle": pages["middle"],
            "unrelated": pages["short"] | {"data": "unrelated", "documents": 30, "tokens": (48, 144)},
        }
    )
    return config
