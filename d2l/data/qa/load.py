"""Published question-answering sets as records: one context with all that is asked about it."""

import hashlib
import logging
from collections.abc import Iterator

from d2l.data.qa.rows import read_rows
from d2l.data.qa.sets import SETS, Item, QASet
from d2l.data.record import Query, Record
from d2l.errors import UserError

SPLITS = ("train", "validation", "test")
logger = logging.getLogger(__name__)


def load_qa(name: str, place: str, split: str) -> list[Record]:
    """Records of a split of a set, in the order in which their contexts come first.

    Rows about the same context become one record, whose id is a digest of the context. Questions without answers (of
    splits that hide them) are left out, and counted in a warning.

    Args:
      name: a key of `SETS`.
      place: file, folder, `hf:OWNER/NAME` or `tfds:NAME`: see `read_rows`.
      split: `train`, `validation` or `test`.

    Raises:
      UserError: an unknown set or split, a place without rows, a malformed row (the sentence says where), an id that
        stands twice, or no question with an answer.
    """
    if name not in SETS:
        raise UserError(f"there is no data set {name!r}: give one of {', '.join(SETS)}.")
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}: give one of {', '.join(SPLITS)}.")
    asked: dict[str, dict[str, tuple[str, ...]]] = {}
    hidden = 0
    for item in _items(SETS[name], place, split):
        if answers := tuple(dict.fromkeys(filter(None, map(str.strip, item.answers)))):
            questions = asked.setdefault(item.context, {})
            # A question that comes twice has the answers of both.
            question = item.question.strip()
            questions[question] = tuple(dict.fromkeys((*questions.get(question, ()), *answers)))
        else:
            hidden += 1
    if hidden:
        logger.warning("%s (%s): %d questions have no answers and are left out", name, split, hidden)
    if not asked:
        raise UserError(f"{place} has no questions with answers for {name} ({split}): give another split or place.")
    return [
        Record(context_id(context), context, tuple(Query(*pair) for pair in questions.items()), name, split)
        for context, questions in asked.items()
    ]


def context_id(context: str) -> str:
    """16 hexadecimal digits that tell a context by its text."""
    return hashlib.blake2b(context.encode(), digest_size=8).hexdigest()


def _items(qa: QASet, place: str, split: str) -> Iterator[Item]:
    seen: dict[str, str] = {}
    for where, row in read_rows(place, split, qa.part):
        try:
            item = qa.parse(row)
        except (KeyError, TypeError) as error:
            raise UserError(f"{where} has no readable {error}: rows of this set hold {qa.fields}.") from error
        texts = [item.context, item.question, *item.answers]
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise UserError(f"{where} has {wrong[0]!r:.40} for text: rows of this set hold {qa.fields}.")
        if not item.context.strip() or not item.question.strip():
            raise UserError(f"{where} has an empty context or question: take it out.")
        if item.id:
            if item.id in seen:
                raise UserError(f"{where}: the id {item.id!r} stands in {seen[item.id]} already: take one of them out.")
            seen[item.id] = where
        yield item
