"""Context distillation against D2L on 30 held-out pages about people: quality, seconds, bytes (paper section 4.3).

    d2l eval --config configs/eval_pages_cd.py --workdir runs/eval_pages_cd

Distillation as in `configs/eval_cd.py`, on two questions of the page itself (oracle) and on four that the target asks.
About 95 s a page on two cores alone, 190 s on one; the figures are in the cards of `checkpoints/pages_smollm2` and
`checkpoints/distil_smollm2`. Useful override: --config.methods.cd_generated.epochs=300, as the release trains
"""

import ml_collections

from configs import eval_pages


def get_config() -> ml_collections.ConfigDict:
    config = eval_pages.get_config()
    distilled = {"epochs": 60, "lr": 3e-4}
    config.methods.update({"cd_oracle": distilled, "cd_generated": distilled | {"questions": 4}})
    pages = config.suites.short.to_dict() | {"documents": 30, "seed": 1}
    config.suites = ml_collections.ConfigDict({"pages": pages})
    return config
