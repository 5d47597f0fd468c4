"""Where the documents of an evaluation come from: generators, published sets, or a file of records."""

import inspect
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from d2l.data.biographies.generate import biography_at
from d2l.data.biographies.generate import unrelated as unrelated_pages
from d2l.data.jsonl import read_records
from d2l.data.niah import needle_at
from d2l.data.qa.load import load_qa
from d2l.data.qa.sets import SETS
from d2l.data.record import Query, Record
from d2l.data.ruler import ruler_at
from d2l.data.shards import Shards
from d2l.errors import UserError
from d2l.target.tokenizer import Tokenizer

NO_LIMIT = 1 << 40
MOST_MISSES = 1000  # records in a row without a question that fits, after which a generator is not asked for more


def needles(tokenizer: Tokenizer, *, seed: int = 0, tokens: tuple[int, int] = (32, 256)) -> Iterator[Record]:
    """Needles in haystacks of a range of lengths, as `d2l niah` writes them."""
    for index in itertools.count():
        needle = needle_at(seed, index, tokenizer, *tokens)
        query = Query(needle.question, (needle.answer,))
        yield Record(f"{seed}-{index}", needle.document, (query,), "needles", "test")


def biographies(
    tokenizer: Tokenizer, *, split: str = "test", seed: int = 0, tokens: tuple[int, int] = (128, 512)
) -> Iterator[Record]:
    """Pages about people who do not exist."""
    for index in itertools.count():
        yield biography_at(split, seed, index, tokenizer, *tokens)


def unrelated(
    tokenizer: Tokenizer, *, split: str = "test", seed: int = 0, tokens: tuple[int, int] = (128, 512)
) -> Iterator[Record]:
    """Pages about people who do not exist, and common knowledge, which they say nothing of."""
    return unrelated_pages(split, seed, tokenizer, *tokens)


def ruler(
    tokenizer: Tokenizer,
    *,
    task: str = "single_1",
    split: str = "test",
    seed: int = 0,
    tokens: tuple[int, int] = (32, 256),
    short: bool = True,
    words: str = "ruler",
    begun: bool = False,
) -> Iterator[Record]:
    """One of RULER's needle tasks; `short` questions ask for the values alone, replies may be `begun`."""
    for index in itertools.count():
        yield ruler_at(task, split, seed, index, tokenizer, *tokens, short=short, words=words, begun=begun)


def published(name: str) -> Callable[..., Iterator[Record]]:
    """The records of a published set."""

    def records(
        tokenizer: Tokenizer, *, place: str = "", split: str = "test", tokens: tuple[int, int] = (1, NO_LIMIT)
    ) -> Iterator[Record]:
        if not place:
            raise UserError(f"the data {name} have no place: give a file, a folder, hf:OWNER/NAME or tfds:NAME.")
        return of_length(load_qa(name, place, split), tokenizer, tokens)

    return records


def stored(tokenizer: Tokenizer, *, path: str = "", tokens: tuple[int, int] = (1, NO_LIMIT)) -> Iterator[Record]:
    """The records of a JSON-lines file, or of a folder of shards."""
    if not path:
        raise UserError("the data records have no path: give a .jsonl file of records, or a folder that d2l wrote.")
    if pathlib.Path(path).is_dir():
        shards = Shards(path)
        return of_length((shards[i] for i in range(len(shards))), tokenizer, tokens)
    return of_length(read_records(path), tokenizer, tokens)


SOURCES: dict[str, Callable[..., Iterator[Record]]] = {
    "needles": needles,
    "biographies": biographies,
    "unrelated": unrelated,
    "ruler": ruler,
    "records": stored,
    **{name: published(name) for name in SETS},
}


def check_source(name: str) -> None:
    """Raise a `UserError` that lists the known sources where `name` is none of them."""
    if name not in SOURCES:
        raise UserError(f"there are no data {name!r}: give one of {', '.join(SOURCES)}.")


def of_length(records: Iterable[Record], tokenizer: Tokenizer, tokens: tuple[int, int]) -> Iterator[Record]:
    """Those records whose context has tokens in a range, ends included."""
    return (record for record in records if tokens[0] <= len(tokenizer.encode(record.context)) <= tokens[1])


def take_records(
    tokenizer: Tokenizer,
    *,
    data: str,
    documents: int,
    queries: int = NO_LIMIT,
    kinds: tuple[str, ...] = (),
    prompt: str = "",
    **options: Any,
) -> list[Record]:
    """The first records of a source that have a question of the wanted kinds.

    Args:
      data: a name in `SOURCES`.
      documents: how many records; 0 takes all of a source of files.
      queries: at most so many questions of each.
      kinds: questions of these kinds only; () takes all.
      prompt: how questions are put, {} being the question; "" is what the set's own evaluation does.
      options: of the source.

    Raises:
      UserError: an unknown source or option, fewer documents than wanted, or what the source refuses.
    """
    check_source(data)
    known = [key for key in inspect.signature(SOURCES[data]).parameters if key != "tokenizer"]
    if unknown := [key for key in options if key not in known]:
        raise UserError(f"the data {data} have no option {unknown[0]!r}: give some of {', '.join(known)}.")
    put = prompt or (SETS[data].prompt if data in SETS else "{}")
    if "{}" not in put:
        raise UserError(f"the prompt {put!r} has no place for the question: put {{}} there.")
    if documents == 0 and not {"path", "place"} & set(known):
        raise UserError(f"the data {data} have no end: say how many documents.")
    found: list[Record] = []
    missed = 0
    for record in SOURCES[data](tokenizer, **options):
        if len(found) == (documents or None) or missed == MOST_MISSES:
            break
        asked = [q for q in record.queries if q.answers and (not kinds or q.kind in kinds)][:queries]
        put_queries = tuple(q._replace(question=put.replace("{}", q.question), teacher=None) for q in asked)
        missed = 0 if put_queries else missed + 1
        if put_queries:
            found.append(Record(record.id, record.context, put_queries, record.source, record.split))
    if len(found) < max(1, documents):
        raise UserError(
            f"{documents or 'all'} documents were asked for, the data {data} have {len(found)} that fit: ask for fewer."
        )
    return found
