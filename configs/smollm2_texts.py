"""Real text on SmolLM2-135M-Instruct: passages of Wikipedia, questions for what stands in them, and pages about people.

From `checkpoints/pages_smollm2`, whose rows copy from what they read. Stages: sentences of the passage that are given
up to a name, a year or a number; then short answers, with pages about people beside them, and common knowledge beside a
page that says nothing of it. Questions with blanks cost it some of the plain ones, so what is used is the mean of these
weights and of those it began with. The launcher makes the data, trains, averages and evaluates:

    launch/smollm2_texts.sh
    d2l train --config configs/smollm2_texts.py --workdir runs/smollm2_texts

Two CPU cores: 9 s an update, 37 minutes. Useful override: --config.checkpoint_every=10
"""

import ml_collections

from configs import smollm2_pages


def get_config() -> ml_collections.ConfigDict:
    config = smollm2_pages.get_config()
    config.init = "checkpoints/pages_smollm2"
    packed = config.stages.continued.to_dict()

    def sources(**weights: float) -> dict:
        return {name: {"path": f"data/{name}", "weight": weight} for name, weight in weights.items()}

    begun = sources(
        cloze_continued_64=0.45, cloze_continued_128=0.25, spaced_72=0.1, spaced_240=0.05, unrelated_120=0.15
    )
    short = sources(cloze_spaced_64=0.3, cloze_spaced_128=0.25, cloze_continued_64=0.1)
    short |= sources(spaced_72=0.12, spaced_240=0.11, unrelated_120=0.12)
    config.stages = ml_collections.ConfigDict(
        {
            "continued": packed | {"order": 0, "steps": 60, "data": begun},
            "answers": packed | {"order": 1, "steps": 180, "final": 0.03, "data": short},
        }
    )
    return config
