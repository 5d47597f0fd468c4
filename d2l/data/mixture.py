"""The endless order in which records of several sources are trained on: a pure function of seed and position."""

from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np

from d2l.data.record import Record
from d2l.data.shards import Shards
from d2l.errors import UserError


def open_sources(data: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[Shards, float]]:
    """The sources of a stage, `{name: {"path": folder, "weight": share}}`, each with its weight.

    Raises:
      UserError: a field is missing or unknown, a weight is not positive, or a folder's records cannot be used.
    """
    sources = {}
    for name, fields in data.items():
        if set(fields) != {"path", "weight"}:
            raise UserError(f"the source {name} has the fields {sorted(fields)}: give path and weight.")
        if not fields["weight"] > 0:
            raise UserError(f"the source {name} has the weight {fields['weight']}: give a positive one.")
        sources[name] = Shards(fields["path"]), float(fields["weight"])
    if not sources:
        raise UserError("data names no source: give {name: {path: FOLDER, weight: 1.0}}.")
    return sources


def mixture(sources: Sequence[tuple[Sequence[Record], float]], seed: int) -> grain.MapDataset[Record]:
    """Records of all sources in the proportion of their weights, shuffled anew in every epoch of their source.

    Element i is a pure function of seed and i; a source's epoch holds each of its records once.
    """
    seeds = np.random.SeedSequence(seed).generate_state(len(sources))
    parts = [
        grain.MapDataset.source(source).shuffle(seed=int(own)).repeat()
        for (source, _), own in zip(sources, seeds, strict=True)
    ]
    return grain.MapDataset.mix(parts, [weight for _, weight in sources])
