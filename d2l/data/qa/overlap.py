"""Contexts that training and test share: a test on them measures memory, not reading."""

import re
from collections.abc import Iterable

from d2l.data.qa.load import context_id
from d2l.data.record import Record
from d2l.errors import UserError


def overlap(train: Iterable[Record], test: Iterable[Record]) -> list[Record]:
    """Records of `test` whose context stands in `train`, whatever their case, white space and punctuation."""
    known = {_key(record) for record in train}
    return [record for record in test if _key(record) in known]


def check_overlap(train: Iterable[Record], test: Iterable[Record]) -> None:
    """Refuse a test set that shares contexts with what is trained on.

    Raises:
      UserError: names the first three shared contexts and says how many there are.
    """
    if shared := overlap(train, test):
        named = ", ".join(f"{record.source} ({record.split}) {record.id}" for record in shared[:3])
        more = " and others" if len(shared) > 3 else ""
        raise UserError(f"{len(shared)} test context(s) are trained on, {named}{more}: take them out of training.")


def _key(record: Record) -> str:
    return context_id(" ".join(re.findall(r"\w+", record.context.lower())))
