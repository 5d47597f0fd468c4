"""Questions about any text, made without a model: a name, a year or a number is taken out of a sentence and asked for.

Cloze questions, as in CNN/Daily Mail (arXiv 1506.03340), put as blanks and, where a sentence's form allows it, as plain
questions. Every answer stands in the text, word for word.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from d2l.data.background import sentences_of
from d2l.data.record import Query, Record, check_answers

MIN_WORDS, MAX_BEFORE, MAX_AFTER = 7, 18, 10  # of a sentence, and of what is asked of it around its blank
# Phrasings of a sentence with a blank; the last two are held out for the test split.
BLANKS = (
    'What is missing? "{}"',
    'Fill in the blank: "{}"',
    'What does the text say where the blank is? "{}"',
    "{}\nWhat stands in the blank?",
    'Which words does the text have in place of the blank: "{}"?',
    "What belongs in the blank? {}",
)
HELD_OUT = 2
BLANK = "____"

_YEAR = re.compile(r"\b(?:in|since|until|from|by|after|before|around|of) ((?:1\d|20)\d\d)\b(?![-–.,]?\d)")
_NUMBER = re.compile(
    r"(?<![\w.,-])(\d(?:[\d,]*\d)?(?:\.\d+)?(?: (?:million|billion|thousand))?)(?= (?:percent\b|[a-z]{3,}))"
)
_WORDS = r"[A-Z][a-zà-ž-]{2,}(?: (?:(?:of|the|de|von) )?[A-Z][a-zà-ž-]+){0,3}"
_NAME = re.compile(rf"(?:^|(?<=[\s(\"]))[a-z]+ ({_WORDS})(?![\w'’]| \d)")
# A name that a sentence begins with.
_FIRST = re.compile(rf"({_WORDS})(?= (?:was|were|is|are|had|has|began|became|made|won|took|said|wrote) [a-z])")
_SUBJECT = re.compile(r"((?:[A-Z]|The |An? )[^,;:()]{2,60}?) (was|were|is|are) ")
# Words that open a sentence in capitals and are no names.
OPENERS = frozenset(
    "The A An In This These Its His Her Their It He She They There One Some Many Most Other Each Both That Who What "
    "Another".split()
)


class Span(NamedTuple):
    """What is asked for: characters `start` to `end` of a sentence."""

    kind: str
    start: int
    end: int


def ask_about(
    record: Record, rng: np.random.Generator, most: int, *, answers: str = "value", plain: bool = False
) -> Record:
    """The record with at most `most` questions about its sentences, in random order, no two with the same answer.

    Phrasings of the test split are others than those of training.

    Args:
      answers: one of `ANSWERS`: the words taken out, or `spaced`; the whole sentence up to them, or `continued` from
        them on, what stands before being the query's `start`.
      plain: no blanks; few sentences can be asked about so.

    Raises:
      UserError: an unknown form of answers.
    """
    check_answers(answers)
    phrasings = BLANKS[-HELD_OUT:] if record.split == "test" else BLANKS[:-HELD_OUT]
    sentences = [sentence for line in record.context.splitlines() for sentence in sentences_of(line)]
    spans = [(sentence, span) for sentence in sentences for span in find_spans(sentence)]
    queries, asked = [], set()
    for i in rng.permutation(len(spans)):
        sentence, (kind, start, end) = spans[i]
        value = sentence[start:end]
        if len(queries) == most or value in asked:
            continue
        before, after = _around(sentence, start, end)
        # Nobody needs the text for what stands in the question.
        if re.search(rf"\b{re.escape(value)}\b", before + after):
            continue
        question = _plain(sentence, kind, start, end) if plain or rng.random() < 0.5 else None
        if question is None and plain:
            continue
        if question is None:
            question = phrasings[rng.integers(len(phrasings))].format(f"{before}{BLANK}{after}")
        asked.add(value)
        queries.append(_told(Query(question, (value,), kind), sentence, start, end, answers))
    return Record(record.id, record.context, tuple(queries), record.source, record.split)


def find_spans(sentence: str) -> Iterator[Span]:
    """Years, numbers and names of a sentence that can be asked for."""
    if len(sentence.split()) < MIN_WORDS or not re.search(r"[a-z]{2}[.!?]$|\d[.!?]$", sentence):
        return  # a heading, or cut off after an initial
    for kind, pattern in (("year", _YEAR), ("number", _NUMBER), ("name", _NAME)):
        for match in pattern.finditer(sentence):
            start, end = match.span(1)
            if not (kind == "number" and re.fullmatch(r"(1\d|20)\d\d", sentence[start:end])):
                yield Span(kind, start, end)
    if (match := _FIRST.match(sentence)) and match[1].split()[0] not in OPENERS:
        yield Span("subject", *match.span(1))


def _around(sentence: str, start: int, end: int) -> tuple[str, str]:
    """What stands before and after a span, shortened to whole words."""
    before, after = sentence[:start].split(" "), sentence[end:].split(" ")
    head = "... " if len(before) > MAX_BEFORE else ""
    tail = " ..." if len(after) > MAX_AFTER else ""
    return head + " ".join(before[-MAX_BEFORE:]), " ".join(after[:MAX_AFTER]) + tail


def _plain(sentence: str, kind: str, start: int, end: int) -> str | None:
    """A question without a blank, where the sentence's form gives one."""
    if kind == "subject":
        return f"Who or what{sentence[end:].rstrip('.!?')}?" if len(sentence[end:].split()) <= MAX_BEFORE else None
    subject = _SUBJECT.match(sentence)
    if subject is None or subject.end() > start:
        return None
    name, verb = subject.groups()
    opener = name.split()[0]
    name = name[0].lower() + name[1:] if opener in OPENERS else name
    middle = sentence[subject.end() : start].rstrip()
    after = re.split(r"[,;:!?(]|\.(?!\d)", sentence[end:], maxsplit=1)[0]
    if not middle or re.search(r"[;:(\"]", middle) or len(middle.split()) > MAX_BEFORE:
        return None
    preposition = middle.rsplit(" ", 1)[-1]
    if kind == "year" and preposition == "in":
        return f"In which year {verb} {name} {middle.removesuffix('in').rstrip(' ,')}{after}?"
    if kind == "name" and preposition in ("by", "in", "from", "at", "to", "with", "on", "near", "for"):
        asked = "whom" if preposition == "by" else "what" if preposition in ("with", "on", "for") else "which place"
        rest = middle.removesuffix(preposition).rstrip(" ,")
        return f"{preposition.capitalize()} {asked} {verb} {name} {rest}{after}?" if rest else None
    if kind == "number":
        return f"{sentence[: subject.end()]}{middle} how many{after}?"
    return None


def _told(query: Query, sentence: str, start: int, end: int, answers: str) -> Query:
    value = sentence[start:end]
    if answers == "spaced":
        return query._replace(answers=(f" {value}",))
    if answers == "sentence":
        return query._replace(answers=(sentence[:end] + ".",))
    if answers == "continued":
        return query._replace(answers=(f" {value}.",), start=sentence[:start].rstrip())
    return query
