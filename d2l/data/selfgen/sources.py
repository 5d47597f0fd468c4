"""What self-generation works on: documents and records, cut or truncated to what the models can read."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from d2l.data.documents import read_documents
from d2l.data.jsonl import read_records
from d2l.data.passages import cut
from d2l.data.record import Record
from d2l.data.selfgen.answers import CLOSED_QA
from d2l.data.selfgen.chat import Chat
from d2l.data.selfgen.config import SelfgenConfig
from d2l.data.selfgen.questions import PAIR_TOKENS, longest_prompt
from d2l.data.shards import INDEX, Shards
from d2l.errors import UserError
from d2l.target.tokenizer import Tokenizer

QUESTION_TOKENS = 128  # room for a generated question
LONGEST_LINE = max(CLOSED_QA, key=len)
OUTSIDE = "documents"  # source of what comes from files


@dataclasses.dataclass(frozen=True)
class Work:
    """Records to ask about.

    Attributes:
      records: their contexts fit the models' windows; without queries where questions are generated.
      given: documents and records that they come from.
      truncated: contexts that were too long and lost their middle.
      without_questions: records that had no question to keep.
      sha256: of all records.
    """

    records: list[Record]
    given: int
    truncated: int
    without_questions: int
    sha256: str


def read_work(places: Sequence[str], asker: Chat, answerer: Chat, config: SelfgenConfig) -> Work:
    """The records of files, folders and globs: documents, `.jsonl` files of records, folders of shards.

    Raises:
      UserError: something cannot be read, an id comes twice, nothing is left to ask about, or passages that do not fit
        a window.
    """
    records: list[Record] = []
    seen: dict[tuple[str, str, str], str] = {}
    truncated: set[tuple[str, str, str]] = set()
    given = without = 0
    if config.questions == "generate":
        _check_room(asker, answerer, config)
    for place, record in _read(places):
        given += 1
        key = (record.source, record.split, record.id)
        if key in seen:
            raise UserError(
                f"{place} has the id {record.id!r} of {record.source} ({record.split}), which {seen[key]} has already: "
                "give every record of a source and split an id of its own."
            )
        seen[key] = place
        if config.questions == "generate":
            passages = cut(record.context, answerer.tokenizer, config.passage_tokens)
            for number, text in enumerate(passages):
                name = record.id if len(passages) == 1 else f"{record.id}#{number}"
                records.append(dataclasses.replace(record, id=name, context=text, queries=()))
        elif not record.queries:
            without += 1
        elif any(query.start for query in record.queries):
            raise UserError(
                f"{place} has answers that go on after a beginning which is given: the target answers whole questions, "
                "give records without `start`."
            )
        else:
            room = min(answerer.room(f"{q.question}\n{LONGEST_LINE}", config.max_new_tokens) for q in record.queries)
            text = truncate_middle(record.context, answerer.tokenizer, room)
            if text != record.context:
                truncated.add(key)
            records.append(dataclasses.replace(record, context=text))
    if not records:
        raise UserError(
            f"{', '.join(map(str, places))}: none of {given} documents "
            + ("holds a text" if config.questions == "generate" else "has a question to keep")
            + ": give others."
        )
    if config.limit is not None and config.limit < len(records):
        chosen = np.random.default_rng(config.seed).permutation(len(records))[: config.limit]
        records = [records[i] for i in sorted(chosen)]
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record.to_json()).encode())
    lost = sum((record.source, record.split, record.id) in truncated for record in records)
    return Work(records, given, lost, without, digest.hexdigest())


def truncate_middle(text: str, tokenizer: Tokenizer, most: int) -> str:
    """The text if it has at most `most` tokens, else its first and its last half of them, a line break between."""
    encoding = tokenizer.core.encode(text, add_special_tokens=False)
    if len(encoding.ids) <= most:
        return text
    places = encoding.offsets
    for keep in range(most - 1, 1, -1):  # tokens at the seam may come out as more
        head, tail = keep - keep // 2, keep // 2
        short = f"{text[: places[head - 1][1]]}\n{text[places[-tail][0] :]}"
        if len(tokenizer.encode(short)) <= most:
            return short
    raise UserError(f"the window leaves {most} tokens for a document: ask shorter questions, or for shorter answers.")


def _check_room(asker: Chat, answerer: Chat, config: SelfgenConfig) -> None:
    asking = asker.room(longest_prompt(config), PAIR_TOKENS)
    answering = answerer.room(f"\n{LONGEST_LINE}", config.max_new_tokens) - QUESTION_TOKENS
    if config.passage_tokens > min(asking, answering):
        raise UserError(
            f"passage_tokens is {config.passage_tokens}, the windows leave {max(0, min(asking, answering))} beside "
            "questions and answers: give fewer."
        )


def _read(places: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """Where each record stands, and the record: those of documents first."""
    stored = [place for place in places if str(place).endswith(".jsonl") or (pathlib.Path(place) / INDEX).is_file()]
    if files := [place for place in places if place not in stored]:
        for document in read_documents(files):
            yield document.name, Record(document.name, document.text, (), OUTSIDE, "train")
    for place in stored:
        if str(place).endswith(".jsonl"):
            records = read_records(place)
        else:
            shards = Shards(place)
            records = (shards[number] for number in range(len(shards)))
        for record in records:
            yield str(place), record
