"""The target's own answers to questions about documents, with the likeliest tokens at each of their tokens (SPEC 5)."""

import collections
from collections.abc import Sequence

import numpy as np

from d2l.data.record import Query, Teacher
from d2l.data.selfgen.chat import Chat
from d2l.data.selfgen.config import SelfgenConfig
from d2l.target.prefix import Prefixes

CLOSED_QA = (
    "Reply with only the answer.",
    "Answer from the text, in as few words as possible.",
    "Give the shortest answer that is right according to the text.",
)


def mix_instructions(queries: Sequence[Query], share: float, rng: np.random.Generator) -> list[Query]:
    """The queries, about `share` of them with one of `CLOSED_QA` on a line after the question."""
    out = []
    for query in queries:
        chosen, line = rng.random() < share, CLOSED_QA[rng.integers(len(CLOSED_QA))]
        out.append(query._replace(question=f"{query.question}\n{line}") if chosen else query)
    return out


def answer(
    chat: Chat,
    read: Prefixes,
    asked: Sequence[tuple[int, Query]],
    config: SelfgenConfig,
    seed: int,
    dropped: collections.Counter[str],
) -> list[Query | None]:
    """The queries with the target's answer as their `teacher`, also as reference where they have none.

    Args:
      asked: index of a document that was read, and a query about it.
      dropped: counts queries left out, under `empty answer` and `unfinished answer`.

    Returns:
      None in the place of queries that are left out.
    """
    prompts = [(document, query.question) for document, query in asked]
    replies = chat.reply(read, prompts, config.max_new_tokens, config.temperature, seed, top_k=config.top_k)
    out: list[Query | None] = []
    for (_, query), reply in zip(asked, replies, strict=True):
        text = chat.tokenizer.decode(reply.said).strip()
        unfinished, empty = not reply.ended and config.unfinished == "drop", not text
        dropped["unfinished answer"] += unfinished
        dropped["empty answer"] += empty
        if unfinished or empty:
            out.append(None)
            continue
        teacher = Teacher(np.array(reply.ids, np.int32), *reply.best)
        out.append(query._replace(answers=query.answers or (text,), teacher=teacher))
    return out
