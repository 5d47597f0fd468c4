"""Questions about any text, made without a model and without answers: for the target to answer by itself (`selfgen`).

What context distillation wants of a question is only that somebody might ask it: its answer is what the target says
with the text in its prompt, also where that is "the text does not say" (paper, section 3.1). So nothing has to be taken
out of a sentence, as `cloze` does, and nearly every sentence can be asked about.
"""

import re
from collections.abc import Iterator

import numpy as np

from d2l.data.background import sentences_of
from d2l.data.cloze import OPENERS, find_spans
from d2l.data.record import Query, Record

# Phrasings by what is asked about. A name's kind is not known, so that some do not fit: the target answers these, too.
PHRASINGS = {
    "name": (
        "What is {}?",
        "Who or what is {}?",
        "What does the text say about {}?",
        "What happened to {}?",
        "What did {} do?",
        "Where is {}?",
        "What is {} known for?",
        "With what is {} compared or connected?",
        "Which other name is mentioned together with {}?",
        "In which year is {} mentioned?",
    ),
    "year": (
        "What happened in {}?",
        "What was done in {}, and by whom?",
        "Which event was in {}?",
        "Who is named in connection with {}?",
        "Where did something happen in {}?",
    ),
    "count": ("How many {} are there?", "How many {} does the text speak of?", "What is the number of {}?"),
    "short": ("What does {} stand for?", "What is {}?"),
    "subject": (
        "What {1} {0}?",
        "When {1} {0}{2}?",
        "Where {1} {0}{2}?",
        "Why {1} {0}{2}?",
        "How {1} {0}{2}?",
        "Who or what {1}{2}?",
    ),
    "passive": ("By whom {1} {0} {2}?", "In which year {1} {0} {2}?", "In which place {1} {0} {2}?"),
    "active": ("Who {}?", "Who or what {}?", "Which person or thing {}?"),
    # In the sentence's own words, the asked for in its place.
    "in_place": ("{}?", "Please complete: {}?", "According to the text, {}?"),
}
_WHAT = {"year": "which year", "number": "how many", "name": "whom or what", "subject": "who or what"}

_SHORT = re.compile(r"\(([A-Z]{2,6})\)")
_COUNT = re.compile(r"\b\d[\d,.]*(?: (?:million|billion|thousand))? ((?:[a-z]{3,} )?[a-z]{3,}s)\b")
_SUBJECT = re.compile(r"((?:[A-Z]|The |An? )[^,;:()\"]{2,50}?) (was|were|is|are) ([a-z]+)")
_ACTIVE = re.compile(r"[A-Z][\w'’-]+(?: [A-Z][\w'’.-]+){0,3} ((?:[a-z]+ed|wrote|became|won|made|took|held|led) .+)")
_ENDING = re.compile(r".*[a-z] (?:of|in|by|for|to|with|from|as|into|on|at|is|are|was|were|called|named) ")
_STOPS = re.compile(r"[,;:()\"]| (?:and|but|which|who|that|when|where|while|because|after|before|in [12]\d\d\d)\b")
MIN_WORDS, MAX_WORDS = 4, 16  # of what a question repeats of its sentence


def ask_openly(record: Record, rng: np.random.Generator, most: int) -> Record:
    """The record with at most `most` questions about its sentences, in random order, no two of them alike.

    Queries have no answers, and their `kind` is a key of `PHRASINGS`. The splits share phrasings: these questions are
    for training.
    """
    sentences = [sentence for line in record.context.splitlines() for sentence in sentences_of(line)]
    subjects = [subject for sentence in sentences for subject in _subjects(sentence)]
    queries: dict[str, Query] = {}
    # Every kind comes first as often as any other, though most of what there is are names.
    kinds = [kind for kind, _ in subjects]
    for i in np.argsort(rng.exponential([float(kinds.count(kind)) for kind in kinds])):
        kind, words = subjects[i]
        phrasing = PHRASINGS[kind][rng.integers(len(PHRASINGS[kind]))]
        question = phrasing.format(*words)
        if len(queries) == most:
            break
        queries.setdefault(question, Query(question, (), kind))
    return Record(record.id, record.context, tuple(queries.values()), record.source, record.split)


def _subjects(sentence: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What can be asked about: a key of `PHRASINGS` and the words that its phrasings take."""
    for kind, start, end in find_spans(sentence):
        if kind != "number":
            yield "year" if kind == "year" else "name", (sentence[start:end],)
        yield from _in_place(sentence[:start], _WHAT[kind], sentence[end:])
    for kind, pattern in (("short", _SHORT), ("count", _COUNT)):
        for match in pattern.finditer(sentence):
            yield kind, (match[1],)
    if match := _ENDING.match(_STOPS.split(sentence, maxsplit=1)[0].rstrip(".!?")):
        yield from _in_place(match[0], "what", "")
    if match := _SUBJECT.match(sentence):
        name, verb, word = match.groups()
        first = name.split()[0]
        name = name[0].lower() + name[1:] if first in OPENERS else name
        rest = _clause(sentence[match.end(2) :])
        yield "subject", (name, verb, rest)
        if word.endswith("ed") and verb in ("was", "were"):
            yield "passive", (name, verb, word)
    if (match := _ACTIVE.match(sentence)) and sentence.split()[0] not in OPENERS:
        yield "active", (_clause(match[1]),)


def _in_place(before: str, what: str, after: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    words = f"{before}{what}{_STOPS.split(after, maxsplit=1)[0].rstrip('.!?')}".split(" ")
    if MIN_WORDS <= len(words) <= MAX_WORDS + 6 and not re.search(r"[;:()\"]", before):
        yield "in_place", (" ".join(words),)


def _clause(text: str) -> str:
    """The beginning of it that stands alone: up to a comma or the next clause, and not all too long."""
    words = _STOPS.split(text, maxsplit=1)[0].rstrip(".!? ").split(" ")
    return " ".join(words[:MAX_WORDS])
