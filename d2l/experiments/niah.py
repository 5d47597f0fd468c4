"""Needle-in-a-haystack evaluation: exact match of D2L, in context and no context on the same fresh needles."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tqdm

from d2l.data.niah import Needle, exact_match, needle_at, wilson_interval
from d2l.errors import UserError
from d2l.model import DocToLora

ANSWER_TOKENS = 16
# Documents answered together; long ones fewer at a time, since each has a KV cache or an adapter of its own.
BATCH_TOKENS = 8192
MAX_BATCH = 16

Method = Callable[[DocToLora, Sequence[Needle], Mapping[str, Any]], list[list[int]]]


def answer_d2l(model: DocToLora, needles: Sequence[Needle], reading: Mapping[str, Any]) -> list[list[int]]:
    """Answers with the documents internalized, with the keywords `reading`, and absent."""
    adapter = model.internalize([needle.document for needle in needles], **reading)
    prompts = [model.tokenizer.user_turn(needle.question) for needle in needles]
    return model.generate_ids(prompts, adapter, max_new_tokens=ANSWER_TOKENS)


def answer_in_context(model: DocToLora, needles: Sequence[Needle], reading: Mapping[str, Any]) -> list[list[int]]:
    """Answers with the documents in the prompt, whole, also past the target's window."""
    del reading
    prompts = [model.tokenizer.document_turn(needle.document, needle.question) for needle in needles]
    return model.generate_ids(prompts, max_new_tokens=ANSWER_TOKENS)


def answer_no_context(model: DocToLora, needles: Sequence[Needle], reading: Mapping[str, Any]) -> list[list[int]]:
    """Answers to the question alone."""
    del reading
    prompts = [model.tokenizer.user_turn(needle.question) for needle in needles]
    return model.generate_ids(prompts, max_new_tokens=ANSWER_TOKENS)


METHODS: dict[str, Method] = {"d2l": answer_d2l, "in_context": answer_in_context, "no_context": answer_no_context}


def evaluate(
    model: DocToLora,
    *,
    methods: Sequence[str],
    lengths: Sequence[tuple[int, int]],
    samples: int,
    seed: int,
    **reading: Any,
) -> list[dict[str, Any]]:
    """Exact match per method and length range.

    Args:
      methods: names in `METHODS`.
      lengths: ranges of document tokens, ends included.
      samples: needles per range, the same for every method.
      seed: of the test set.
      reading: keywords of `DocToLora.internalize` for `d2l`.

    Returns:
      Rows with `task`, `method`, `length`, `n`, `exact_match`, `low` and `high` of its 95 % Wilson interval, and
      `contains`, the share of replies that hold the answer among other words.

    Raises:
      UserError: an unknown method, no samples, a range without needles.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise UserError(f"there is no method {unknown[0]!r}: give some of {', '.join(METHODS)}.")
    if samples < 1:
        raise UserError(f"samples is {samples}: give 1 or more.")
    rows = []
    for low, high in lengths:
        needles = [needle_at(seed, index, model.tokenizer, low, high) for index in range(samples)]
        size = max(1, min(MAX_BATCH, BATCH_TOKENS // high))
        for name in methods:
            hits = named = 0
            for start in tqdm.trange(0, samples, size, desc=f"{name} {low}-{high}", disable=None, leave=False):
                batch = needles[start : start + size]
                answers = METHODS[name](model, batch, reading)
                for ids, needle in zip(answers, batch, strict=True):
                    text = model.tokenizer.decode(ids)
                    hits += exact_match(text, needle.answer)
                    named += needle.answer in text
            interval = wilson_interval(hits, samples)
            rows.append(
                {
                    "task": "niah",
                    "method": name,
                    "length": f"{low}-{high}",
                    "n": samples,
                    "exact_match": hits / samples,
                    "low": round(interval[0], 4),
                    "high": round(interval[1], 4),
                    "contains": named / samples,
                }
            )
    return rows
