"""The questions that a page answers."""

from collections.abc import Sequence

import numpy as np

from d2l.data.biographies.facts import Fact
from d2l.data.biographies.lives import ENTITIES, FACTS, Lives
from d2l.data.biographies.paragraph import Statement, pick, with_article
from d2l.data.record import Query

KINDS = ("fact", "who", "multi_hop", "contradiction")
# Questions over one relation, as `What is the occupation of NAME's spouse?`
HOPS_A_RELATION = 3
# Counts are written out on the page; a figure is as good an answer.
DIGITS = {word: str(i) for i, word in enumerate("zero one two three four five six seven eight nine".split())}


def make_queries(rng: np.random.Generator, split: str, lives: Lives, statements: Sequence[Statement]) -> list[Query]:
    """Everything that can be asked about the statements of a page: one phrasing of each question."""
    stated = {(statement.person, statement.fact) for statement in statements if statement.fact}
    queries = [statement.claim for statement in statements if statement.claim]
    for number, person in enumerate(lives.people):
        for name, fact in FACTS.items():
            if (number, name) not in stated:
                continue
            queries.append(_ask(rng, split, fact, lives.values[number][name], person.name, "fact"))
            # Who it is can be asked only where one person of the page fits.
            if fact.who and sum(values[name] == lives.values[number][name] for values in lives.values) == 1:
                value, detail = lives.values[number][name]
                question = pick(rng, fact.who, split).format(v=value, a=with_article(value), w=detail)
                queries.append(Query(question, (person.name,), "who"))
        for anchor, facts in ENTITIES.items():
            for fact in facts:
                if (number, anchor) in stated and (number, fact.name) in stated:
                    queries.append(_ask(rng, split, fact, lives.values[number][fact.name], person.name, "multi_hop"))
    for (number, degree), other in sorted(lives.links.items()):
        if (number, degree) not in stated:
            continue
        about = f"{lives.people[number].name}'s {degree}"
        known = [name for name in FACTS if (other, name) in stated and lives.links.get((other, name)) != number]
        for i in rng.permutation(len(known))[:HOPS_A_RELATION]:
            queries.append(_ask(rng, split, FACTS[known[i]], lives.values[other][known[i]], about, "multi_hop"))
    return queries


def _ask(rng: np.random.Generator, split: str, fact: Fact, drawn: tuple[str, str], about: str, kind: str) -> Query:
    value, detail = drawn
    answers = (value, DIGITS[value]) if value in DIGITS else (value,)
    return Query(pick(rng, fact.questions, split).format(n=about, w=detail), answers, kind)
