"""Questions about documents: asked of a model in two rounds, parsed out of its replies, malformed ones dropped."""

import collections
import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from d2l.data.selfgen.chat import Chat
from d2l.data.selfgen.config import SelfgenConfig
from d2l.target.prefix import Prefixes

ASK = """Part of the text above: "{part}"

Write a short question about it. Use this form:
Question: ...?
Answer: ..."""
AGAIN = "\nThe question asks for something else than these do:\n{known}"
# Of the replies, drawn: small models keep to a form that they find begun, and ask the same again where they may.
STARTS = tuple(f"Question: {word}" for word in ("What", "How", "Which", "Why", "When", "Where"))
PAIR_TOKENS = 80  # of a question and its answer
MIN_WORDS, MAX_WORDS = 4, 60
AROUND = '* "\u201c\u201d'  # a question or an answer: Markdown and quotes

_QUESTION = re.compile(r"^[\s*#>-]*(?:\d+[.):]\s*)?\**Q(?:uestion)?\s*\d*\s*\**\s*[:.]\s*\**\s*", re.I | re.M)
_ANSWER = re.compile(
    r"^[\s*#>-]*(?:The |A )?(?:possible )?A(?:nswer)?(?: is)?\s*\d*\s*\**\s*[:.]\s*\**\s*", re.I | re.M
)
_PART = re.compile(r"(?<=[.!?])\s+|\n\s*\n")


def parse_pairs(reply: str) -> tuple[list[tuple[str, str]], int]:
    """Pairs of question and answer out of a reply, and how many were malformed.

    A pair is `Question: ...`, then `Answer: ...` on a line of its own; numbers, Markdown and quotes around them do
    not matter. It is malformed without an answer, or if the question is not 4 to 60 words that end in a question mark.
    """
    pairs, malformed = [], 0
    for block in _QUESTION.split(reply)[1:]:
        parts = _ANSWER.split(block, maxsplit=1)
        question = " ".join(parts[0].split()).strip(AROUND)
        answer = " ".join(parts[1].strip().split("\n\n")[0].split()).strip(AROUND) if len(parts) == 2 else ""
        if answer and question.endswith("?") and MIN_WORDS <= len(question.split()) <= MAX_WORDS:
            pairs.append((question, answer))
        else:
            malformed += 1
    return pairs, malformed


def ask_questions(
    chat: Chat,
    read: Prefixes,
    documents: Sequence[str],
    config: SelfgenConfig,
    rng: np.random.Generator,
    dropped: collections.Counter[str],
) -> tuple[list[list[str]], int]:
    """Questions about each of `documents`, which were read as `read`, in the order they were asked, no two alike.

    A question is about a part of its document that is drawn; the second round takes parts that the first left out, as
    far as there are any, and is told what has been asked.

    Args:
      dropped: counts pairs left out, under `malformed` and `duplicate`.

    Returns:
      At most `2 * config.per_round` questions for each document, and how many tokens were generated for them.
    """
    found: list[dict[str, str]] = [{} for _ in documents]
    drawn = [_draw_parts(text, 2 * config.per_round, rng) for text in documents]
    tokens = 0
    for number in range(2):
        asked = [
            (i, _prompt(part, known.values()))
            for i, known in enumerate(found)
            for part in drawn[i][number * config.per_round : (number + 1) * config.per_round]
        ]
        starts = [STARTS[rng.integers(len(STARTS))] for _ in asked]
        seed = int(rng.integers(1 << 30))
        replies = chat.reply(read, asked, PAIR_TOKENS, config.question_temperature, seed, starts=starts)
        tokens += sum(len(reply.said) for reply in replies)
        for (i, _), start, reply in zip(asked, starts, replies, strict=True):
            pairs, malformed = parse_pairs(start + chat.tokenizer.decode(reply.said))
            if not pairs:
                dropped["malformed"] += malformed
                continue
            question = pairs[0][0]  # one was asked for
            key = " ".join(re.findall(r"\w+", question.lower()))
            if key in found[i]:
                dropped["duplicate"] += 1
            else:
                found[i][key] = question
    return [list(known.values()) for known in found], tokens


def longest_prompt(config: SelfgenConfig) -> str:
    """A prompt as long as those of round two get, with how its reply begins."""
    words = "word " * MAX_WORDS
    return _prompt(words, [words] * config.per_round) + max(STARTS, key=len)


def _prompt(part: str, known: Iterable[str]) -> str:
    lines = "\n".join(f"- {question}" for question in known)
    return ASK.format(part=part) + (AGAIN.format(known=lines) if lines else "")


def _draw_parts(text: str, count: int, rng: np.random.Generator) -> list[str]:
    """Sentences of a text, or paragraphs without any, in a drawn order, none again before all were drawn."""
    lines = (" ".join(part.split()[:MAX_WORDS]) for part in _PART.split(text))
    parts = [line for line in lines if len(line.split()) >= MIN_WORDS] or [" ".join(text.split()[:MAX_WORDS])]
    order = itertools.chain.from_iterable(rng.permutation(len(parts)) for _ in itertools.count())
    return [parts[i] for i in itertools.islice(order, count)]
