"""How good an answer is: word overlap, exact match, ROUGE-L (SPEC 6), and KL to the in-context teacher.

Text metrics lie in [0, 1] and take the best of several reference answers. A bag of words is what is left after
lower-casing, turning punctuation into spaces and dropping articles, as in the release; so `well-known` is two words.
"""

import collections
import functools
import re
import string
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from d2l.errors import UserError

# Typographic dashes, quotes and the ellipsis separate words as their ASCII forms do; marks without width do not.
PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}–—“”«»„‘’ʼ…]")
INVISIBLE = re.compile("[\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
ARTICLES = re.compile(r"\b(a|an|the)\b")


class Overlap(NamedTuple):
    """Agreement of two bags of words: precision counts the prediction's words, recall the reference's."""

    f1: float
    precision: float
    recall: float


def words(text: str) -> list[str]:
    """Words that count: lower case, without punctuation and articles."""
    return ARTICLES.sub(" ", PUNCTUATION.sub(" ", INVISIBLE.sub("", text).lower())).split()


def word_overlap(prediction: str, references: Sequence[str]) -> Overlap:
    """Word-bag F1, and precision and recall of the reference with the best F1 (the first of equals).

    Raises:
      UserError: there is no reference.
    """
    given = collections.Counter(words(prediction))
    best = Overlap(0.0, 0.0, 0.0)
    for reference in _some(references):
        wanted = collections.Counter(words(reference))
        if common := (given & wanted).total():
            precision, recall = common / given.total(), common / wanted.total()
            best = max(best, Overlap(2 * precision * recall / (precision + recall), precision, recall), key=_f1)
    return best


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the prediction has the words of a reference in the same order, else 0.0."""
    given = words(prediction)
    return float(any(given == words(reference) for reference in _some(references)))


def contains(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the words of a reference stand in the prediction one after the other (RULER's string match), else 0.0."""
    given = f" {' '.join(words(prediction))} "
    return float(any(f" {' '.join(words(reference))} " in given for reference in _some(references)))


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of stemmed words (rouge-score's ROUGE-L)."""
    return _rouge_scorer().score_multi(_some(references), prediction)["rougeL"].fmeasure


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "f1": lambda prediction, references: word_overlap(prediction, references).f1,
    "precision": lambda prediction, references: word_overlap(prediction, references).precision,
    "recall": lambda prediction, references: word_overlap(prediction, references).recall,
    "exact_match": exact_match,
    "contains": contains,
    "rouge_l": rouge_l,
}


def score(prediction: str, references: Sequence[str], metrics: Sequence[str] = tuple(METRICS)) -> dict[str, float]:
    """The named metrics of one answer.

    Raises:
      UserError: an unknown metric, or no reference.
    """
    if unknown := [name for name in metrics if name not in METRICS]:
        raise UserError(f"there is no metric {unknown[0]!r}: give some of {', '.join(METRICS)}.")
    return {name: METRICS[name](prediction, references) for name in metrics}


def token_kl(teacher_logits: jax.Array, student_logits: jax.Array) -> jax.Array:
    """KL(teacher || student) in nats over the full vocabulary, per token.

    Args:
      teacher_logits, student_logits: `[..., V]`, of any float type, at the same response tokens.

    Returns:
      float32 `[...]`.
    """
    logp = jax.nn.log_softmax(teacher_logits.astype(jnp.float32), axis=-1)
    logq = jax.nn.log_softmax(student_logits.astype(jnp.float32), axis=-1)
    # Words that the teacher rules out (-inf) add nothing.
    return jnp.sum(jnp.where(jnp.isneginf(logp), 0.0, jnp.exp(logp) * (logp - logq)), axis=-1)


def _f1(overlap: Overlap) -> float:
    return overlap.f1


def _some(references: Sequence[str]) -> Sequence[str]:
    if isinstance(references, str) or not references:
        raise UserError(f"the reference answers are {references!r}: give a list of at least one text.")
    return references


@functools.cache
def _rouge_scorer():
    from rouge_score import rouge_scorer  # its stemmer takes half a second to import

    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
