"""One document and what is asked about it: the record that every data set, generator and evaluation speaks."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from d2l.errors import UserError

# How generated sets may put an answer: alone; with the space before it that it has within a text, so that its tokens
# are those of the document; in a sentence; from its place in such a sentence on (`Query.start`).
ANSWERS = ("value", "spaced", "sentence", "continued")
OPTIONAL = ("kind", "start")  # fields of a query that its JSON may lack


def check_answers(form: str, forms: Sequence[str] = ANSWERS) -> None:
    """Raise a `UserError` where `form` is none of `forms`."""
    if form not in forms:
        raise UserError(f"answers are {form!r}: give one of {', '.join(forms)}.")


class Teacher(NamedTuple):
    """What the target itself answered with the document in its prompt, stored ahead (SPEC 5).

    Letters: R response tokens with the end token, k tokens kept.

    Attributes:
      response: int32 `[R]`.
      tokens: the likeliest tokens at each, int32 `[R, k]`.
      logp: their log-probabilities over the full vocabulary, float32 `[R, k]`.
    """

    response: np.ndarray
    tokens: np.ndarray
    logp: np.ndarray


class Query(NamedTuple):
    """One question about a document.

    Attributes:
      question: as a person would ask it.
      answers: reference answers, the first one being what a model is trained on; empty where a set hides them.
      kind: what sort of question it is, where the set tells (`multi_hop`, `contradiction`); else "".
      teacher: the target's own answer, in self-generated data; not part of the JSON.
      start: how the reply begins, given in training and not trained on: answers are what follows it.
    """

    question: str
    answers: tuple[str, ...]
    kind: str = ""
    teacher: Teacher | None = None
    start: str = ""


@dataclasses.dataclass(frozen=True)
class Record:
    """One context with its queries.

    Attributes:
      id: unique within its source and split.
      context: text of the document.
      source: name of the set that it comes from.
      split: `train`, `validation` or `test`.
    """

    id: str
    context: str
    queries: tuple[Query, ...]
    source: str
    split: str

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists; `from_json` is the inverse."""
        queries = [
            {"question": q.question, "answers": list(q.answers)}
            | {name: value for name, value in (("kind", q.kind), ("start", q.start)) if value}
            for q in self.queries
        ]
        fields = {"id": self.id, "source": self.source, "split": self.split}
        return fields | {"context": self.context, "queries": queries}

    @classmethod
    def from_json(cls, fields: Any) -> "Record":
        """The record of what `to_json` gave.

        Raises:
          UserError: a field is missing, unknown or of another type; the sentence names it.
        """
        _check_fields("record", fields, {"id": str, "context": str, "queries": list, "source": str, "split": str})
        queries = []
        for query in fields["queries"]:
            fields_of_query = {"question": str, "answers": list} | dict.fromkeys(OPTIONAL, str)
            _check_fields("query", query, fields_of_query, optional=OPTIONAL)
            if wrong := [answer for answer in query["answers"] if not isinstance(answer, str)]:
                raise UserError(f"a query's answer is {wrong[0]!r}: give text.")
            optional = {name: query[name] for name in OPTIONAL if name in query}
            queries.append(Query(query["question"], tuple(query["answers"]), **optional))
        return cls(**(fields | {"queries": tuple(queries)}))


def _check_fields(what: str, fields: Any, types: dict[str, type], optional: tuple[str, ...] = ()) -> None:
    if not isinstance(fields, dict):
        raise UserError(f"a {what} is {fields!r:.60}: give an object with {', '.join(types)}.")
    if unknown := sorted(fields.keys() - types.keys()):
        raise UserError(f"a {what} has the unknown field {unknown[0]!r}: give only {', '.join(types)}.")
    for name, kind in types.items():
        if name not in fields:
            if name not in optional:
                raise UserError(f"a {what} has no {name!r}: give {', '.join(types)}.")
        elif not isinstance(fields[name], kind):
            wanted = {str: "text", list: "a list"}[kind]
            raise UserError(f"{name!r} of a {what} is {fields[name]!r:.60}: give {wanted}.")
