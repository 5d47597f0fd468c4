"""Cutting a tokenised document into chunks (SPEC 4)."""

from collections.abc import Mapping, Sequence

import numpy as np

from d2l.errors import UserError

# Chunks per context in training and their probabilities (SPEC 4).
CHUNK_PROBS = {1: 0.5, 2: 0.125, 3: 0.0625, 4: 0.0625, 5: 0.0625, 6: 0.0625, 7: 0.0625, 8: 0.0625}


def split_into(ids: Sequence[int], count: int) -> list[list[int]]:
    """At most `count` chunks of ceil(len / count) tokens each, the last one shorter; never an empty one."""
    size = -(-len(ids) // count)
    return [list(ids[start : start + size]) for start in range(0, len(ids), size)]


def split_tokens(ids: Sequence[int], max_chunk_len: int) -> list[list[int]]:
    """K = ceil(len / max_chunk_len) chunks of equal length.

    Raises:
      UserError: the document is empty, or `max_chunk_len` is not positive.
    """
    if max_chunk_len < 1:
        raise UserError(f"max_chunk_len is {max_chunk_len}: give a positive number of tokens.")
    if not len(ids):
        raise UserError("the document is empty: give a text with at least one token.")
    return split_into(ids, -(-len(ids) // max_chunk_len))


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
