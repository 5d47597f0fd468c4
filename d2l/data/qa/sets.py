"""Published question-answering sets: what their rows mean.

Each function turns a row of its set into an item; a field that is missing or of another type raises `KeyError` or
`TypeError`, which the loader turns into a sentence with the row's place.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from d2l.data.qa.rows import Row

# How the release asks in evaluation, {} being the question.
SHORT = "Answer the following question. Output only the answer and do not output any other words.\n\nQuestion: {}"
QASPER = (
    "Answer the question as concisely as you can, using a single phrase or sentence if possible.\nIf the question "
    'cannot be answered based on the information in the article, write "unanswerable".\nIf the question is a yes/no '
    'question, answer "yes", "no", or "unanswerable". Do not provide any explanation.\n\nQuestion: {}'
)


class Item(NamedTuple):
    """One question of a set.

    Attributes:
      answers: references, the set's first one first; empty where the set hides them.
      id: the set's own, or "" where it gives none.
    """

    context: str
    question: str
    answers: list[str]
    id: str = ""


@dataclasses.dataclass(frozen=True)
class QASet:
    """A published set.

    Attributes:
      parse: row -> item.
      fields: what a row holds, for error messages.
      part: word in the name of its files, where it shares a folder with other sets.
      prompt: how its questions are put in evaluation.
    """

    parse: Callable[[Row], Item]
    fields: str
    part: str | None = None
    prompt: str = "{}"


def squad(row: Row) -> Item:
    return Item(row["context"], row["question"], row["answers"]["text"], row["id"])


def drop(row: Row) -> Item:
    """As on the Hugging Face hub (`answers_spans`) or in tensorflow-datasets (`answer`, `validated_answers`)."""
    if "answers_spans" in row:
        answers = row["answers_spans"]["spans"]
    else:
        answers = [row["answer"], *row["validated_answers"]]
    return Item(row["passage"], row["question"], answers, row["query_id"])


def ropes(row: Row) -> Item:
    """The document is the background, then the situation on a line of its own, as in the release."""
    return Item(f"{row['background']}\n{row['situation']}", row["question"], row["answers"]["text"], row["id"])


def pwc(row: Row) -> Item:
    """Prompt-with-Context, of the In-context Autoencoder."""
    return Item(row["input"], row["prompt"], [row["answer"]])


def longbench(row: Row) -> Item:
    return Item(row["context"], row["input"], row["answers"], row["_id"])


def babilong(row: Row) -> Item:
    return Item(row["input"], row["question"], [row["target"]])


def plain(row: Row) -> Item:
    """A set of one's own: one question a row."""
    answers = row["answers"] if "answers" in row else [row["answer"]]
    return Item(row["context"], row["question"], answers, row.get("id", ""))


LONGBENCH_FIELDS = "context, input, answers, _id"
SETS = {
    "squad": QASet(squad, "id, context, question, answers.text", prompt=SHORT),
    "drop": QASet(drop, "passage, question, answers_spans.spans or answer, query_id", prompt=SHORT),
    "ropes": QASet(ropes, "background, situation, question, answers.text, id", prompt=SHORT),
    "pwc": QASet(pwc, "input, prompt, answer"),
    "2wikimqa_e": QASet(longbench, LONGBENCH_FIELDS, "2wikimqa_e", SHORT),
    "multifieldqa_en_e": QASet(longbench, LONGBENCH_FIELDS, "multifieldqa_en_e", SHORT),
    "qasper_e": QASet(longbench, LONGBENCH_FIELDS, "qasper_e", QASPER),
    **{f"babilong_qa{task}": QASet(babilong, "input, question, target", f"qa{task}", SHORT) for task in range(1, 11)},
    "plain": QASet(plain, "context, question, answers or answer"),
}
