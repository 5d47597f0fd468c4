"""Cutting a tokenised document into chunks (paper section 3.3)."""

from collections.abc import Sequence

from d2l.errors import UserError


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
