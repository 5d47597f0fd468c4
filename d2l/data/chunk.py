"""How many chunks a training document is cut into (SPEC 4)."""

from collections.abc import Mapping

import numpy as np

# Chunks per context in training and their probabilities (SPEC 4).
CHUNK_PROBS = {1: 0.5, 2: 0.125, 3: 0.0625, 4: 0.0625, 5: 0.0625, 6: 0.0625, 7: 0.0625, 8: 0.0625}


def draw_num_chunks(
    rng: np.random.Generator,
    length: int,
    min_chunk_len: int,
    max_chunk_len: int,
    most: int,
    probs: Mapping[int, float] = CHUNK_PROBS,
) -> int:
    """Draw how many chunks a training document of `length` tokens is cut into.

    K follows `probs` among the counts that keep chunks within [min_chunk_len, max_chunk_len] and are <= `most`; where
    none does, K is the smallest count that keeps them under `max_chunk_len`.
    """
    fits = [k for k in probs if k <= most and min_chunk_len <= -(-length // k) <= max_chunk_len]
    if not fits:
        return -(-length // max_chunk_len)
    weights = np.array([probs[k] for k in fits])
    return int(rng.choice(fits, p=weights / weights.sum()))
