"""What an evaluation asks: cases, each some documents that are known together and questions about them.

| suite | what is known | what is asked |
|---|---|---|
| records | one document | its questions |
| needles | one haystack of each length and depth | its number |
| contradiction | a document that contradicts common knowledge | what it says there |
| interference | an unrelated document | questions about another one, which nobody has read |
| several | the document among others | its questions |
| swapped | a question | the document, in the prompt |
| scale | one document, its adapter stronger or weaker | its questions |
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from d2l.data.niah import needle_at
from d2l.data.record import Query, Record
from d2l.errors import UserError
from d2l.experiments.sources import check_source, take_records
from d2l.target.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Case:
    """Documents and what is asked about them.

    Attributes:
      id: unique in its suite.
      documents: known together, before the questions.
      group: what stands or falls together in resampling: the document that the questions are about.
      length: its tokens.
      depth: where a needle stands, in [0, 1]; None elsewhere.
      scale: strength of the adapter.
    """

    id: str
    documents: tuple[str, ...]
    queries: tuple[Query, ...]
    group: str
    length: int
    depth: float | None = None
    scale: float = 1.0


def _case(record: Record, tokenizer: Tokenizer, **changes: Any) -> Case:
    name = f"{record.source}/{record.id}"
    length = len(tokenizer.encode(record.context))
    return dataclasses.replace(Case(name, (record.context,), record.queries, name, length), **changes)


def records(tokenizer: Tokenizer, **source) -> list[Case]:
    return [_case(record, tokenizer) for record in take_records(tokenizer, **source)]


def contradiction(tokenizer: Tokenizer, **source) -> list[Case]:
    return records(tokenizer, kinds=("contradiction",), **source)


def needles(
    tokenizer: Tokenizer,
    *,
    lengths: tuple[tuple[int, int], ...] = ((32, 256),),
    depths: int = 5,
    samples: int = 2,
    seed: int = 1,
) -> list[Case]:
    """`samples` needles for each range of lengths and each of `depths` depths from 0 to 1."""
    cases = []
    for low, high in lengths:
        for index in range(depths * samples):
            depth = float(np.linspace(0, 1, depths)[index % depths])
            needle = needle_at(seed, index, tokenizer, low, high, depth)
            name = f"{low}-{high}/{index}"
            query = Query(needle.question, (needle.answer,))
            cases.append(Case(name, (needle.document,), (query,), name, needle.length, depth))
    return cases


def interference(tokenizer: Tokenizer, **source) -> list[Case]:
    found = take_records(tokenizer, **source)
    _need(found, 2, "interference")
    return [
        _case(record, tokenizer, documents=(found[(i + 1) % len(found)].context,)) for i, record in enumerate(found)
    ]


def several(tokenizer: Tokenizer, *, together: int = 3, **source) -> list[Case]:
    """The document stands at another place among the `together` of each case."""
    found = take_records(tokenizer, **source)
    _need(found, together, "several")
    cases = []
    for i, record in enumerate(found):
        others = [found[(i + j) % len(found)].context for j in range(1, together)]
        others.insert(i % together, record.context)
        cases.append(_case(record, tokenizer, documents=tuple(others)))
    return cases


def swapped(tokenizer: Tokenizer, **source) -> list[Case]:
    cases = []
    for record in take_records(tokenizer, **source):
        for number, query in enumerate(record.queries):
            asked = (query._replace(question=record.context),)
            case = _case(record, tokenizer, documents=(query.question,), queries=asked)
            cases.append(dataclasses.replace(case, id=f"{case.id}#{number}"))
    return cases


def scale(tokenizer: Tokenizer, *, scales: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0), **source) -> list[Case]:
    """Every strength of the adapter, 1 first and always."""
    cases = records(tokenizer, **source)
    return [
        dataclasses.replace(case, id=f"{case.id}@{factor:g}", scale=factor)
        for case in cases
        for factor in dict.fromkeys((1.0, *map(float, scales)))
    ]


SUITES: dict[str, Callable[..., list[Case]]] = {
    "records": records,
    "needles": needles,
    "contradiction": contradiction,
    "interference": interference,
    "several": several,
    "swapped": swapped,
    "scale": scale,
}


def check_suite(name: str, options: dict[str, Any]) -> None:
    """Refuse a suite of a config that does not exist, or lacks what it needs.

    Raises:
      UserError: the sentence lists the known ones.
    """
    kind = options.get("kind", name)
    if kind not in SUITES:
        raise UserError(f"there is no suite {kind!r}: give some of {', '.join(SUITES)}.")
    own = inspect.signature(SUITES[kind]).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
        if missing := [key for key in ("data", "documents") if key not in options]:
            raise UserError(f"the suite {name} has no {missing[0]}: say which data, and how many documents of them.")
        check_source(options["data"])
        return
    known = [key for key in own if key != "tokenizer"]
    if unknown := [key for key in options if key not in ("kind", *known)]:
        raise UserError(f"the suite {name} has no option {unknown[0]!r}: give some of {', '.join(known)}.")


def make_cases(name: str, options: dict[str, Any], tokenizer: Tokenizer) -> list[Case]:
    """The cases of a suite of a config.

    Args:
      name: what the config calls it.
      options: its `kind`, a name in `SUITES` (default: `name` itself), and the options of that.

    Raises:
      UserError: an unknown kind or option, missing options, or what the source of the documents refuses.
    """
    check_suite(name, options)
    own = {key: value for key, value in options.items() if key != "kind"}
    return SUITES[options.get("kind", name)](tokenizer, **own)


def _need(found: list[Record], count: int, suite: str) -> None:
    if len(found) < count:
        raise UserError(f"the suite {suite} needs {count} documents or more, it has {len(found)}: ask for more.")
