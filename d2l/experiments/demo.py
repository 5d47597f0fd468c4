"""The demonstration: one document, one question, answered by D2L, in context and without the document."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from d2l.adapter import Adapter
from d2l.model import DocToLora


@dataclasses.dataclass(frozen=True)
class Line:
    """What one way of answering gave and cost.

    Attributes:
      update_seconds: reading the document ahead of the question; 0 where that happens with the question.
      answer_seconds: from the question to the end of the answer.
      adapter_bytes, kv_bytes: what is kept to answer: the adapter, and the KV cache of the prompt.
      prompt_tokens: tokens of the prompt, chat turn included.
    """

    method: str
    answer: str
    update_seconds: float
    answer_seconds: float
    adapter_bytes: int
    kv_bytes: int
    prompt_tokens: int


def compare(model: DocToLora, document: str, question: str, *, max_new_tokens: int, **reading: Any) -> list[Line]:
    """Answer one question about one document in the three ways; times are of a second run, compiled already.

    In context is left out where document and question do not fit the target's window. `reading` are keywords of
    `DocToLora.internalize`.
    """

    def internalize() -> Adapter:
        return jax.block_until_ready(model.internalize(document, **reading))

    adapter, update_seconds = _second(internalize)
    alone = model.tokenizer.user_turn(question)
    whole = model.tokenizer.document_turn(document, question)
    lines = [_line(model, "D2L", alone, max_new_tokens, adapter, update_seconds)]
    if len(whole) + max_new_tokens <= model.target.config.max_position_embeddings:
        lines.append(_line(model, "in context", whole, max_new_tokens))
    return [*lines, _line(model, "no context", alone, max_new_tokens)]


def _line(
    model: DocToLora,
    method: str,
    prompt: Sequence[int],
    max_new_tokens: int,
    adapter: Adapter | None = None,
    update_seconds: float = 0.0,
) -> Line:
    (ids,), seconds = _second(lambda: model.generate_ids([prompt], adapter, max_new_tokens=max_new_tokens))
    return Line(
        method,
        model.tokenizer.decode(ids).strip(),
        update_seconds,
        seconds,
        0 if adapter is None else adapter.nbytes,
        model.generator.cache_nbytes(len(prompt)),
        len(prompt),
    )


def _second[T](function: Callable[[], T]) -> tuple[T, float]:
    """The result of a second call, and its seconds."""
    function()
    began = time.perf_counter()
    result = function()
    return result, time.perf_counter() - began


def table(lines: Sequence[Line]) -> str:
    """The comparison as text: costs in a table, then the answers."""
    head = ("method", "prompt", "read document", "answer", "adapter", "KV cache")
    rows = [
        (
            line.method,
            f"{line.prompt_tokens:,} tokens",
            f"{line.update_seconds:.2f} s" if line.update_seconds else "-",
            f"{line.answer_seconds:.2f} s",
            _size(line.adapter_bytes),
            _size(line.kv_bytes),
        )
        for line in lines
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    costs = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (head, *rows)]
    answers = [f"{line.method.ljust(widths[0])}  {' '.join(line.answer.split())}" for line in lines]
    return "\n".join([*costs, "", *answers])


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count else "-"
