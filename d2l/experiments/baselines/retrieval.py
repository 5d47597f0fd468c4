"""Retrieval: the passages that fit a question best stand in its prompt; here found by BM25."""

import collections
import math
from collections.abc import Callable, Sequence

import numpy as np

from d2l.data.passages import cut
from d2l.errors import UserError
from d2l.experiments.baselines.face import Memory, Method, Prompt
from d2l.experiments.baselines.in_context import document_prompt
from d2l.experiments.metrics import words
from d2l.model import DocToLora

Ranker = Callable[[str], np.ndarray]


def bm25_ranker(texts: Sequence[str], k1: float = 1.5, b: float = 0.75) -> Ranker:
    """Scores of all texts for a query by Okapi BM25 (Robertson et al., 1994), float64 `[texts]`."""
    bags = [collections.Counter(words(text)) for text in texts]
    lengths = np.array([bag.total() for bag in bags], np.float64)
    norm = k1 * (1 - b + b * lengths / max(lengths.mean(), 1.0))
    holders = collections.Counter(word for bag in bags for word in bag)

    def scores(query: str) -> np.ndarray:
        total = np.zeros(len(texts))
        for word in words(query):
            if held := holders[word]:
                idf = math.log(1 + (len(texts) - held + 0.5) / (held + 0.5))
                counts = np.array([bag[word] for bag in bags], np.float64)
                total += idf * counts * (k1 + 1) / (counts + norm)
        return total

    return scores


def bm25(model: DocToLora, max_new_tokens: int, *, count: int = 3, passage_tokens: int = 64) -> Method:
    """The `count` passages of at most `passage_tokens` tokens that BM25 finds, in the order of the documents."""
    return retrieval(model, max_new_tokens, bm25_ranker, count, passage_tokens)


def retrieval(
    model: DocToLora, max_new_tokens: int, index: Callable[[Sequence[str]], Ranker], count: int, passage_tokens: int
) -> Method:
    """A method that puts the `count` passages of the highest scores into the prompt, in the order of the documents.

    Args:
      index: turns passages into a function from a query to their scores.
    """
    if count < 1:
        raise UserError(f"count is {count}: give 1 passage or more.")

    def remember(documents: Sequence[str], queries: Sequence[str]) -> Memory:
        texts = [text for document in documents for text in cut(document, model.tokenizer, passage_tokens)]
        rank = index(texts)

        def prompt(query: str) -> Prompt:
            best = sorted(np.argsort(-rank(query), kind="stable")[:count])
            ids = model.tokenizer.encode("\n".join(texts[i] for i in best))
            return document_prompt(model, ids, query, max_new_tokens)

        return Memory(prompt)

    return Method(model, max_new_tokens, remember)
