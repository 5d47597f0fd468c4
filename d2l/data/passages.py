"""Long texts cut to passages of so many tokens, at the best places there are."""

import re
from collections.abc import Iterator

from d2l.errors import UserError
from d2l.target.tokenizer import Tokenizer

# Where a text may be cut, best first: between paragraphs, lines, sentences, words, letters.
PLACES = [
    re.compile(p)
    for p in (r"(?<=\n)(?=\n)|(?<=\n\n)", r"(?<=\n)", r"(?<=[.!?])(?=\s)", r"(?<=\s)(?=\S)", r"(?s:(?<=.))")
]


def cut(text: str, tokenizer: Tokenizer, max_tokens: int, min_tokens: int = 1) -> list[str]:
    """Passages of at most `max_tokens` tokens in the order of the text, each as long as its paragraphs allow.

    A paragraph that does not fit is cut between lines, a line between sentences, and so on. Passages of less than
    `min_tokens` (the rest at the end of a text, as a rule) are left out.

    Raises:
      UserError: `max_tokens` is below 1.
    """
    if max_tokens < 1:
        raise UserError(f"passages of {max_tokens} tokens hold nothing: give 1 or more.")
    passages = (passage.strip() for passage in _join(_pieces(text, tokenizer, max_tokens, 0), tokenizer, max_tokens))
    return [p for p in passages if p and len(tokenizer.encode(p)) >= min_tokens]


def _pieces(text: str, tokenizer: Tokenizer, most: int, level: int) -> Iterator[str]:
    """Pieces of at most `most` tokens that make up the text, cut no finer than they must be."""
    for piece in filter(None, PLACES[level].split(text)):
        if len(tokenizer.encode(piece)) <= most or len(piece) == 1:
            yield piece
        else:
            yield from _pieces(piece, tokenizer, most, level + 1)


def _join(pieces: Iterator[str], tokenizer: Tokenizer, most: int) -> Iterator[str]:
    """Runs of neighbouring pieces that fit together."""
    passage, count = "", 0
    for piece in pieces:
        tokens = len(tokenizer.encode(piece))
        # The sum is a bound from above for most tokenizers, and cheap; the passage itself decides.
        if passage and count + tokens > most and len(tokenizer.encode(passage + piece)) > most:
            yield passage
            passage, count = "", 0
        passage, count = passage + piece, count + tokens
    yield passage
