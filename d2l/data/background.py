"""Sentences of other texts around those that matter, to a wanted length."""

import re
from collections.abc import Callable, Sequence

import numpy as np

from d2l.errors import UserError
from d2l.target.tokenizer import Tokenizer

SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def sentences_of(text: str) -> list[str]:
    """Sentences of a text that can stand around others, in order."""
    found = (" ".join(sentence.split()) for sentence in SENTENCE_ENDS.split(text))
    return [sentence for sentence in found if 4 <= len(sentence.split()) <= 60]


def surround(
    rng: np.random.Generator,
    told: Sequence[str],
    background: Callable[[int], str],
    tokenizer: Tokenizer,
    min_tokens: int,
    max_tokens: int,
) -> str:
    """The sentences `told`, in their order, at random places between those of a background, in theirs.

    The length in tokens is about uniform in [min_tokens, max_tokens] and never above it; it is below only where the
    next sentence of the background does not fit, or where none is wanted.

    Args:
      background: sentence i of an endless text.

    Raises:
      UserError: the range is empty, or cannot hold what is told.
    """
    wanted = int(rng.integers(min_tokens, max_tokens, endpoint=True)) if min_tokens <= max_tokens else -1
    alone = len(tokenizer.encode(" ".join(told)))
    if wanted < 0 or alone > max_tokens:
        raise UserError(
            f"{alone} tokens must stand in a text of {min_tokens} to {max_tokens} tokens: let the range end higher."
        )
    room, around = wanted - alone, []
    while (cost := len(tokenizer.encode(" " + background(len(around))))) <= room:
        around.append(background(len(around)))
        room -= cost
    places = rng.uniform(size=len(told))
    while True:
        text = _interleave(np.sort(np.round(places * len(around))), around, told)
        if not around or len(tokenizer.encode(text)) <= max_tokens:
            return text
        around.pop()  # costs were of single sentences; a tokenizer may merge across


def _interleave(places: np.ndarray, around: Sequence[str], told: Sequence[str]) -> str:
    out, used = [], 0
    for number in range(len(around) + 1):
        while used < len(told) and places[used] == number:
            out.append(told[used])
            used += 1
        out.extend(around[number : number + 1])
    return " ".join(out)
