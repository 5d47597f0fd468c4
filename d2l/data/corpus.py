"""A free text corpus: the documents that are installed on this machine, without any download.

A group (a package, a family of commands) is in one split as a whole, so that training never sees the neighbours of a
test document. Splits and order follow from names alone and are the same on every run.
"""

import collections
import hashlib
import logging
import re
from collections.abc import Iterator, Sequence

from d2l.data.installed import man_pages, package_documents, python_documents
from d2l.data.readers import Unreadable
from d2l.data.record import Record
from d2l.data.split import draw, split_of
from d2l.errors import UserError

logger = logging.getLogger(__name__)

KINDS = {"man": man_pages, "python": python_documents, "packages": package_documents}
MIN_CHARS = 600
# Texts with fewer letters and spaces are tables, keys or drawings.
LETTERS = 0.7
# Families of near-duplicates (hundreds of subcommands of one tool) give no more than these.
MOST_OF_A_GROUP = 30


def read_corpus(kinds: Sequence[str] = tuple(KINDS), limit: int | None = None) -> Iterator[Record]:
    """Installed documents as records without queries, in an order that mixes groups.

    Documents shorter than `MIN_CHARS` or with few letters, and texts that came before, are left out; they are counted
    in a message at the end, and those that cannot be read are logged one by one.

    Args:
      kinds: keys of `KINDS`.
      limit: most documents of each kind.

    Raises:
      UserError: an unknown kind, or a kind that has no documents here.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"there is no kind of documents {unknown[0]!r}: give some of {', '.join(KINDS)}.")
    seen: set[bytes] = set()
    for kind in kinds:
        try:
            listed = sorted(KINDS[kind](), key=lambda document: draw(document.name))
        except Unreadable as error:
            raise UserError(f"the kind {kind} {error}, or leave the kind out.") from error
        left_out: collections.Counter[str] = collections.Counter()
        of_group: collections.Counter[str] = collections.Counter()
        given = 0
        for name, group, read in listed:
            if given == limit:
                break
            if of_group[group] == MOST_OF_A_GROUP:
                left_out["more of the same group"] += 1
                continue
            try:
                text = read().strip()
            except (Unreadable, OSError) as error:
                logger.info("%s %s: left out", name, error)
                left_out["not readable"] += 1
                continue
            key = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
            if len(text) < MIN_CHARS or len(re.findall(r"[^\W\d_]|\s", text)) < LETTERS * len(text):
                left_out["too short, or few letters"] += 1
            elif key in seen:
                left_out["seen before"] += 1
            else:
                seen.add(key)
                of_group[group] += 1
                given += 1
                yield Record(name, text, (), kind, split_of(f"{kind} {group}"))
        if not given:
            raise UserError(f"no documents of the kind {kind} are installed here: leave the kind out.")
        reasons = ", ".join(f"{count:,} {why}" for why, count in left_out.items())
        logger.info("%s: %s documents, left out: %s", kind, f"{given:,}", reasons or "none")
