"""What is true of the people of one page: the values of their facts, and how they are related."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from d2l.data.biographies.entities import BIRTHPLACE, COMPANY
from d2l.data.biographies.facts import LIFE, Fact
from d2l.data.biographies.habits import HABITS
from d2l.data.biographies.knowledge import Topic, draw_claim
from d2l.data.biographies.names import Person

FACTS = {fact.name: fact for fact in LIFE + HABITS}
# Facts about the company or town that another fact names.
ENTITIES = {"employer": COMPANY, "birthplace": BIRTHPLACE}
DEGREES = ("spouse", "mentor")
CLAIM_SHARE = 0.25  # of paragraphs that contradict common knowledge


@dataclasses.dataclass(frozen=True)
class Lives:
    """The people of a page.

    Attributes:
      values: value and detail of every fact (the entities' too) by name, per person.
      claims: topic, key and false value of each person's paragraph that contradicts common knowledge.
      links: (person, degree) -> the person who is their spouse or mentor, where that one is on the page.
    """

    people: tuple[Person, ...]
    values: tuple[dict[str, tuple[str, str]], ...]
    claims: dict[int, tuple[Topic, str, str]]
    links: dict[tuple[int, str], int]


def draw_lives(rng: np.random.Generator, split: str, people: Sequence[Person]) -> Lives:
    """Draw every fact of every person; two on a page never share a birthplace, an employer or a library card."""
    values: list[dict[str, tuple[str, str]]] = [{} for _ in people]
    for fact in FACTS.values():
        taken: set[str] = set()
        for known in values:
            known[fact.name] = _draw(rng, split, fact, taken if fact.name in (*ENTITIES, "member_number") else set())
    for fact in (fact for facts in ENTITIES.values() for fact in facts):
        for known in values:
            known[fact.name] = _draw(rng, split, fact, set())
    claims: dict[int, tuple[Topic, str, str]] = {}
    for number in range(len(people)):
        topic, key, value = draw_claim(rng, split)
        if rng.random() < CLAIM_SHARE and all(key != other for _, other, _ in claims.values()):
            claims[number] = topic, key, value
    return Lives(tuple(people), tuple(values), claims, _relate(rng, people, values))


def _relate(
    rng: np.random.Generator, people: Sequence[Person], values: Sequence[dict[str, tuple[str, str]]]
) -> dict[tuple[int, str], int]:
    """Make everyone after the first the spouse or mentor of somebody before; sets their values and returns `links`."""
    links: dict[tuple[int, str], int] = {}
    for other in range(1, len(people)):
        degree = DEGREES[int(rng.integers(len(DEGREES)))]
        free = [i for i in range(other) if (i, degree) not in links]
        if free:
            person = free[int(rng.integers(len(free)))]
            links[person, degree] = other
            values[person][degree] = (people[other].name, "")
            if degree == "spouse":
                links[other, degree] = person
                values[other][degree] = (people[person].name, "")
    return links


def _draw(rng: np.random.Generator, split: str, fact: Fact, taken: set[str]) -> tuple[str, str]:
    while True:
        value, detail = fact.draw(rng, split)
        if value not in taken:
            taken.add(value)
            return value, detail
