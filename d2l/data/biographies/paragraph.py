"""The sentences of one person's paragraph."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from d2l.data.biographies.facts import Fact
from d2l.data.biographies.lives import DEGREES, ENTITIES, FACTS, Lives
from d2l.data.biographies.names import Person
from d2l.data.record import Query

ENTITY_FACTS = {fact.name: (anchor, fact) for anchor, facts in ENTITIES.items() for fact in facts}
CLAIM = "claim"
NAMES_SOMEBODY = (*DEGREES, "company_head", CLAIM)
# How a sentence names its person: the full name, the first name, else a pronoun.
FULL_NAME, FIRST_NAME = 0.5, 0.15


@dataclasses.dataclass(frozen=True)
class Statement:
    """One sentence.

    Attributes:
      person: number of the person on the page.
      fact: name of the fact that is stated, or `claim` for a contradiction of common knowledge.
      claim: what is asked about a contradiction.
    """

    text: str
    person: int
    fact: str
    claim: Query | None = None


def make_paragraph(rng: np.random.Generator, split: str, lives: Lives, number: int) -> list[Statement]:
    """All that can be said about a person, in the order in which a page of few words says it.

    The first sentence gives the full name.
    """
    person, values = lives.people[number], lives.values[number]
    statements: list[Statement] = []
    for name in _order(rng, lives, number):
        if name == CLAIM:
            topic, key, value = lives.claims[number]
            text = _capital(pick(rng, topic.sentences, split).format(k=key, v=value))
            question = pick(rng, topic.questions, split).format(k=key)
            statements.append(Statement(text, number, name, Query(question, (value,), "contradiction")))
        elif name in ENTITY_FACTS:
            anchor, fact = ENTITY_FACTS[name]
            text = sentence(rng, split, fact, values[name], {"e": values[anchor][0]})
            statements.append(Statement(text, number, name))
        else:
            # After somebody else's name a pronoun would be theirs.
            plain = not statements or statements[-1].fact in NAMES_SOMEBODY
            named = named_as(person.name, person) if plain else _naming(rng, person)
            statements.append(Statement(sentence(rng, split, FACTS[name], values[name], named), number, name))
    return statements


def _order(rng: np.random.Generator, lives: Lives, number: int) -> list[str]:
    """Names of a person's facts in random order.

    Relations to people of the page come first, so that short pages have questions in two steps too; facts of the
    employer and the birthplace follow soon after these.
    """
    shuffled = [list(FACTS)[i] for i in rng.permutation(len(FACTS))]
    linked = [degree for degree in DEGREES if (number, degree) in lives.links]
    order = [*linked, *(name for name in shuffled if name not in linked)]
    for anchor, facts in ENTITIES.items():
        at = order.index(anchor) + 1
        for fact in facts:
            at += int(rng.integers(3))
            order.insert(at, fact.name)
            at += 1
    if number in lives.claims:
        order.insert(int(rng.integers(1, 6)), CLAIM)
    return order


def pick(rng: np.random.Generator, phrasings: Sequence[str], split: str) -> str:
    """A phrasing of this split: the last is the test split's, the one before it the validation split's."""
    ours = {"test": phrasings[-1:], "validation": phrasings[-2:-1], "train": phrasings[:-2]}[split]
    return ours[int(rng.integers(len(ours)))]


def with_article(value: str) -> str:
    """`a van`, `an orange van`."""
    return f"{'an' if value[0].lower() in 'aeiou' else 'a'} {value}"


def sentence(rng: np.random.Generator, split: str, fact: Fact, drawn: tuple[str, str], named: dict[str, str]) -> str:
    """A fact with the value and detail that were drawn, about somebody who is named so."""
    value, detail = drawn
    return _capital(pick(rng, fact.sentences, split).format(v=value, a=with_article(value), w=detail, **named))


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def named_as(about: str, person: Person) -> dict[str, str]:
    """The placeholders of a sentence that calls its person `about`."""
    return {"s": about, "p": f"{about}'s", "o": about, "t": person.subject, "h": person.possessive}


def _naming(rng: np.random.Generator, person: Person) -> dict[str, str]:
    """The placeholders of a sentence about a person who has been named before."""
    draw = rng.random()
    if draw < FULL_NAME:
        return named_as(person.name, person)
    if draw < FULL_NAME + FIRST_NAME:
        return named_as(person.first, person)
    return named_as(person.name, person) | {"s": person.subject, "p": person.possessive, "o": person.object}
