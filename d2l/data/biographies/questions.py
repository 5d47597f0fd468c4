"""The questions that a page answers."""

from collections.abc import Sequence

import numpy as np

from d2l.data.biographies.facts import Fact
from d2l.data.biographies.lives import ENTITIES, FACTS, Lives
from d2l.data.biographies.paragraph import Statement, named_as, pick, sentence, with_article
from d2l.data.record import Query

KINDS = ("fact", "who", "multi_hop", "contradiction")
# Questions over one relation, as `What is the occupation of NAME's spouse?`
HOPS_A_RELATION = 3
# Counts are written out on the page; a figure is as good an answer.
DIGITS = {word: str(i) for i, word in enumerate("zero one two three four five six seven eight nine".split())}
# How a chat model says an answer, where the sentence of the page is not used.
FRAMES = ("The answer is: {}.", "The answer to this question is: {}.", "The correct answer is {}.", "The answer is {}.")


def make_queries(
    rng: np.random.Generator, split: str, lives: Lives, statements: Sequence[Statement], *, sentences: bool = False
) -> list[Query]:
    """Everything that can be asked about the statements of a page: one phrasing of each question.

    Args:
      sentences: answer in sentences, with the full name, half of the time in one of `FRAMES`.
    """

    def ask(fact: Fact, number: int, about: str, kind: str, named: dict[str, str]) -> Query:
        value, detail = drawn = lives.values[number][fact.name]
        question = pick(rng, fact.questions, split).format(n=about, w=detail)
        if sentences:
            return Query(question, (say(fact, drawn, named, value),), kind)
        return Query(question, (value, DIGITS[value]) if value in DIGITS else (value,), kind)

    def say(fact: Fact | None, drawn: tuple[str, str], named: dict[str, str], value: str) -> str:
        if fact is None or rng.random() < 0.5:
            return FRAMES[rng.integers(len(FRAMES))].format(value)
        return sentence(rng, split, fact, drawn, named)

    stated = {(statement.person, statement.fact) for statement in statements if statement.fact}
    queries = [statement.claim for statement in statements if statement.claim]
    if sentences:
        queries = [q._replace(answers=(say(None, ("", ""), {}, q.answers[0]),)) for q in queries]
    for number, person in enumerate(lives.people):
        named = named_as(person.name, person)
        for name, fact in FACTS.items():
            if (number, name) not in stated:
                continue
            queries.append(ask(fact, number, person.name, "fact", named))
            # Who it is can be asked only where one person of the page fits.
            if fact.who and sum(values[name] == lives.values[number][name] for values in lives.values) == 1:
                value, detail = drawn = lives.values[number][name]
                question = pick(rng, fact.who, split).format(v=value, a=with_article(value), w=detail)
                answer = say(fact, drawn, named, person.name) if sentences else person.name
                queries.append(Query(question, (answer,), "who"))
        for anchor, facts in ENTITIES.items():
            for fact in facts:
                if (number, anchor) in stated and (number, fact.name) in stated:
                    of = {"e": lives.values[number][anchor][0]}
                    queries.append(ask(fact, number, person.name, "multi_hop", of))
    for (number, degree), other in sorted(lives.links.items()):
        if (number, degree) not in stated:
            continue
        about = f"{lives.people[number].name}'s {degree}"
        known = [name for name in FACTS if (other, name) in stated and lives.links.get((other, name)) != number]
        for i in rng.permutation(len(known))[:HOPS_A_RELATION]:
            queries.append(ask(FACTS[known[i]], other, about, "multi_hop", named_as(about, lives.people[other])))
    return queries
