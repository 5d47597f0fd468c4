"""Questions about documents: asked of a model in two rounds, parsed out of its replies, malformed ones dropped."""

import collections
import re
from collections.abc import Sequence

from d2l.data.selfgen.chat import Chat
from d2l.data.selfgen.config import SelfgenConfig
from d2l.target.prefix import Prefixes

ASK = (
    "Write {count} questions about the text above, each with the short answer that the text gives. Name what each "
    "question is about, so that it can be understood without the text. Use this form:\nQuestion: ...\nAnswer: ..."
)
AGAIN = "\nAsk about other things than these questions do:\n{known}"
PAIR_TOKENS = 64  # of a question and its answer, on average
MIN_WORDS, MAX_WORDS = 3, 60

_QUESTION = re.compile(r"^[\s*#>-]*(?:\d+[.):]\s*)?\**Q(?:uestion)?\s*\d*\s*\**\s*[:.]\s*\**\s*", re.I | re.M)
_ANSWER = re.compile(r"^[\s*#>-]*\**A(?:nswer)?\s*\d*\s*\**\s*[:.]\s*\**\s*", re.I | re.M)


def parse_pairs(reply: str) -> tuple[list[tuple[str, str]], int]:
    """Pairs of question and answer out of a reply, and how many were malformed.

    A pair is `Question: ...`, then `Answer: ...` on a line of its own; numbers and Markdown before the words do not
    matter. It is malformed without an answer, or if the question is not 3 to 60 words that end in a question mark.
    """
    pairs, malformed = [], 0
    for block in _QUESTION.split(reply)[1:]:
        parts = _ANSWER.split(block, maxsplit=1)
        question = " ".join(parts[0].split()).strip("* ")
        answer = " ".join(parts[1].split("\n\n")[0].split()).strip("* ") if len(parts) == 2 else ""
        if answer and question.endswith("?") and MIN_WORDS <= len(question.split()) <= MAX_WORDS:
            pairs.append((question, answer))
        else:
            malformed += 1
    return pairs, malformed


def ask_questions(
    chat: Chat, read: Prefixes, count: int, config: SelfgenConfig, seed: int, dropped: collections.Counter[str]
) -> tuple[list[list[str]], int]:
    """Questions about each of `count` documents that were read, in the order they were asked, no two alike.

    Args:
      dropped: counts pairs left out, under `malformed`, `duplicate` and `surplus` (more than was asked for).

    Returns:
      At most `2 * config.per_round` questions for each document, and how many tokens were generated for them.
    """
    found: list[dict[str, str]] = [{} for _ in range(count)]
    tokens = 0
    for number in range(2):
        asked = [(i, _prompt(config.per_round, known.values())) for i, known in enumerate(found)]
        replies = chat.reply(read, asked, config.per_round * PAIR_TOKENS, config.question_temperature, seed + number)
        tokens += sum(map(len, replies))
        for known, reply in zip(found, replies, strict=True):
            pairs, malformed = parse_pairs(chat.tokenizer.decode(reply))
            dropped["malformed"] += malformed
            added = 0
            for question, _ in pairs:
                key = " ".join(re.findall(r"\w+", question.lower()))
                if key in known:
                    dropped["duplicate"] += 1
                elif added == config.per_round:
                    dropped["surplus"] += 1
                else:
                    known[key] = question
                    added += 1
    return [list(known.values()) for known in found], tokens


def longest_prompt(config: SelfgenConfig) -> tuple[str, int]:
    """A prompt as long as those of round two get, and the tokens that are generated after it."""
    known = ["word " * MAX_WORDS] * config.per_round
    return _prompt(config.per_round, known), config.per_round * PAIR_TOKENS


def _prompt(count: int, known: Sequence[str]) -> str:
    lines = "\n".join(f"- {question}" for question in known)
    return ASK.format(count=count) + (AGAIN.format(known=lines) if lines else "")
