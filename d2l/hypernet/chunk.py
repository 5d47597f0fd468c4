"""Cutting a tokenised document into chunks (paper section 3.3)."""

import bisect
import dataclasses
from collections.abc import Sequence

from d2l.errors import UserError

CHUNK_AT = ("tokens", "sentences")


def split_into(ids: Sequence[int], count: int) -> list[list[int]]:
    """At most `count` chunks of ceil(len / count) tokens each, the last one shorter; never an empty one."""
    size = -(-len(ids) // count)
    return [list(ids[start : start + size]) for start in range(0, len(ids), size)]


def split_tokens(ids: Sequence[int], max_chunk_len: int, overlap: int = 0) -> list[list[int]]:
    """The fewest chunks of equal length, at most `max_chunk_len`, of which each begins with the last `overlap` tokens
    of the one before.

    Raises:
      UserError: the document is empty, `max_chunk_len` is not positive, or the overlap no smaller.
    """
    _check(ids, max_chunk_len)
    if not 0 <= overlap < max_chunk_len:
        raise UserError(f"chunk_overlap is {overlap}: give 0 or more, and less than max_chunk_len, {max_chunk_len}.")
    if len(ids) <= max_chunk_len:
        return [list(ids)]
    new = len(ids) - overlap  # of the first chunk and of every later one, without what it shares
    size = -(-new // -(-new // (max_chunk_len - overlap)))
    return [list(ids[start : start + size + overlap]) for start in range(0, new, size)]


def split_sentences(ids: Sequence[int], starts: Sequence[int], max_chunk_len: int, count: int = 1) -> list[list[int]]:
    """Chunks of whole sentences, about equally long and at most `max_chunk_len`.

    Each chunk ends where the sentence ends that leaves it closest to an equal share of what is left. Only a sentence
    longer than `max_chunk_len` is cut: what it says could not be told from either part.

    Args:
      starts: places in `ids` where a sentence begins (`Tokenizer.encode_sentences`), ascending.
      count: chunks that are wanted; there are more where these would be too long, and more or fewer where sentences ask
        for it.

    Raises:
      UserError: the document is empty, or `max_chunk_len` is not positive.
    """
    _check(ids, max_chunk_len)
    chunks, start, ends = [], 0, [*starts, len(ids)]
    while start < len(ids):
        left = len(ids) - start
        share = -(-left // max(count - len(chunks), -(-left // max_chunk_len)))
        stop = start + share
        if share < left:
            last = bisect.bisect_right(ends, start + max_chunk_len)
            whole = ends[bisect.bisect_right(ends, start) : last]
            stop = min(whole, key=lambda place: abs(place - stop), default=stop)
        chunks.append(list(ids[start:stop]))
        start = stop
    return chunks


def _check(ids: Sequence[int], max_chunk_len: int) -> None:
    if max_chunk_len < 1:
        raise UserError(f"max_chunk_len is {max_chunk_len}: give a positive number of tokens.")
    if not len(ids):
        raise UserError("the document is empty: give a text with at least one token.")


@dataclasses.dataclass(frozen=True)
class Chunking:
    """How documents are cut, and how much of them stays.

    Attributes:
      max_chunk_len: tokens of a chunk, at most.
      chunk_overlap: tokens that a chunk shares with the one before, so that what a sentence says is not cut in two.
      keep_chunks: of a document of more chunks, those that stay in its adapter: the loudest (`adapter.loudness`), or
        where the hypernetwork has learned to tell (`HypernetConfig.relevance`) the most relevant. 0 keeps all. Chunks
        in which a hypernetwork finds nothing still add the little that it always writes; in numbers that it was not
        trained on, their sum drowns the rest.
      chunk_at: `tokens` for chunks of equal length, `sentences` for whole sentences where they fit.
      keep_loudness: of these, only those stay that are at least so loud (or relevant), as a share of the document's
        loudest chunk.
      chunk_len: about so many tokens a chunk of whole sentences has, so that those that stay hold little else; only one
        with a longer sentence has more, up to `max_chunk_len`. 0 makes as few chunks as can be. Cuts at `tokens` take
        no notice of it.

    Raises:
      UserError: a negative number of chunks or tokens, a share outside 0 to 1, an unknown `chunk_at`, or sentences that
        overlap.
    """

    max_chunk_len: int
    chunk_overlap: int = 0
    keep_chunks: int = 0
    chunk_at: str = "tokens"
    keep_loudness: float = 0.0
    chunk_len: int = 0

    def __post_init__(self):
        if self.keep_chunks < 0:
            raise UserError(f"keep_chunks is {self.keep_chunks}: give 1 or more, or 0 to keep all.")
        if not 0 <= self.keep_loudness <= 1:
            raise UserError(f"keep_loudness is {self.keep_loudness}: give a share of the loudest, 0 to 1.")
        if self.chunk_len < 0:
            raise UserError(
                f"chunk_len is {self.chunk_len}: give a number of tokens, or 0 for as few chunks as can be."
            )
        if self.chunk_at not in CHUNK_AT:
            raise UserError(f"chunk_at is {self.chunk_at!r}: give {' or '.join(CHUNK_AT)}.")
        if self.chunk_at == "sentences" and self.chunk_overlap:
            raise UserError(
                f"chunk_overlap is {self.chunk_overlap} and chunk_at sentences, which need none: set either to 0 or to "
                "tokens."
            )

    def split(self, ids: Sequence[int], starts: Sequence[int] = ()) -> list[list[int]]:
        """The chunks of a document (`split_tokens`, or `split_sentences` with the places where these start)."""
        if self.chunk_at == "sentences":
            count = -(-len(ids) // self.chunk_len) if self.chunk_len else 1
            return split_sentences(ids, starts, self.max_chunk_len, count)
        return split_tokens(ids, self.max_chunk_len, self.chunk_overlap)

    def kept(self, chunks: int) -> int:
        """How many of a document's chunks its adapter holds."""
        return min(chunks, self.keep_chunks or chunks)
