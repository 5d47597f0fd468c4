"""Needle in a haystack (paper section 4.1; SPEC 6): one sentence with a number, anywhere in repeated noise."""

import dataclasses
import functools
import json
import math
import os
import pathlib

import numpy as np

from d2l.errors import UserError
from d2l.target.tokenizer import Tokenizer

NOISE = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")
NEEDLE = "The special magic number is {}."
TEST_STREAM = 1
QUESTION = "What is the special magic number? Reply with only the number."


@dataclasses.dataclass(frozen=True)
class Needle:
    """One haystack.

    Attributes:
      document: noise blocks and the needle, one per line.
      answer: four digits.
      depth: where the needle stands, 0 at the start and 1 at the end of the noise.
      length: tokens of the document.
    """

    document: str
    question: str
    answer: str
    depth: float
    length: int


def haystack(answer: str, blocks: int, sentences: int, depth: float) -> str:
    """`blocks` whole noise blocks and one of the first `sentences` noise sentences, the needle among them."""
    lines = [" ".join(NOISE)] * blocks
    if sentences:
        lines.append(" ".join(NOISE[:sentences]))
    lines.insert(round(depth * len(lines)), NEEDLE.format(answer))
    return "\n".join(lines)


def make_needle(
    rng: np.random.Generator, tokenizer: Tokenizer, min_tokens: int, max_tokens: int, depth: float | None = None
) -> Needle:
    """A haystack whose length in tokens is about uniform in [min_tokens, max_tokens] and never above it.

    Lengths vary by whole noise sentences; a document shorter than `min_tokens` comes out only where no number of
    sentences reaches the range.

    Args:
      depth: where the needle stands, in [0, 1]; None draws it.

    Raises:
      UserError: `max_tokens` cannot hold the needle alone, or the range is empty.
    """
    answer = f"{rng.integers(10_000):04d}"
    wanted = int(rng.integers(min_tokens, max_tokens, endpoint=True)) if min_tokens <= max_tokens else -1
    depth = float(rng.uniform()) if depth is None else depth
    alone, after = _lengths(tokenizer)
    if wanted < 0 or max_tokens < alone:
        raise UserError(
            f"no haystack has {min_tokens} to {max_tokens} tokens: give a range that ends at {alone} or above."
        )
    blocks, rest = divmod(max(wanted - alone, 0), after[-1])
    sentences = max(i for i, tokens in enumerate(after[:-1]) if tokens <= rest)
    # The counts above are of single lines; a tokenizer may merge across lines, so the document is measured, and
    # moved a sentence at a time until it fits.
    step = blocks * len(NOISE) + sentences
    length = len(tokenizer.encode(haystack(answer, *divmod(step, len(NOISE)), depth)))
    while length > max_tokens and step:
        step -= 1
        length = len(tokenizer.encode(haystack(answer, *divmod(step, len(NOISE)), depth)))
    while length < min_tokens:
        longer = len(tokenizer.encode(haystack(answer, *divmod(step + 1, len(NOISE)), depth)))
        if longer > max_tokens:
            break
        step, length = step + 1, longer
    return Needle(haystack(answer, *divmod(step, len(NOISE)), depth), QUESTION, answer, depth, length)


def needle_at(
    seed: int, index: int, tokenizer: Tokenizer, min_tokens: int, max_tokens: int, depth: float | None = None
) -> Needle:
    """Needle `index` of the endless test set `seed`, a pure function of both; training draws from other streams."""
    return make_needle(np.random.default_rng((TEST_STREAM, seed, index)), tokenizer, min_tokens, max_tokens, depth)


@functools.lru_cache(maxsize=8)
def _lengths(tokenizer: Tokenizer) -> tuple[int, tuple[int, ...]]:
    """Tokens of the needle alone, and those that 0, 1, ... 5 noise sentences on a line of their own add to it."""
    needle = NEEDLE.format("0042")
    alone = len(tokenizer.encode(needle))
    added = [len(tokenizer.encode("\n".join((" ".join(NOISE[:i]), needle)))) - alone for i in range(1, len(NOISE) + 1)]
    return alone, (0, *added)


def write_dataset(
    path: str | pathlib.Path, tokenizer: Tokenizer, *, samples: int, min_tokens: int, max_tokens: int, seed: int
) -> None:
    """Write `samples` needles as JSON lines; an interrupted write leaves nothing behind.

    Raises:
      UserError: the range holds no needle, or the file cannot be written.
    """
    path = pathlib.Path(path)
    scratch = path.with_name(f".{path.name}.part")
    try:
        with scratch.open("w") as file:
            for index in range(samples):
                needle = needle_at(seed, index, tokenizer, min_tokens, max_tokens)
                file.write(json.dumps(dataclasses.asdict(needle)) + "\n")
        os.replace(scratch, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another place or make room.") from error
    finally:
        scratch.unlink(missing_ok=True)


def exact_match(prediction: str, answer: str) -> bool:
    """True if the prediction is the answer, up to surrounding white space and a final full stop."""
    return prediction.strip().removesuffix(".") == answer


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson, 1927)."""
    if n == 0:
        return 0.0, 1.0
    z, p = 1.959964, hits / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + z * z / n)), min(1.0, (centre + spread) / (1 + z * z / n))
