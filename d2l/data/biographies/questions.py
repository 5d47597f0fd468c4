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
    rng: np.random.Generator, split: str, lives: Lives, statements: Sequence[Statement], *, answers: str = "value"
) -> list[Query]:
    """Everything that can be asked about the statements of a page: one phrasing of each question.

    Args:
      answers: one of `ANSWERS`: the value alone, or `spaced`; a sentence with it, half of the time in one of `FRAMES`;
        or such a sentence `continued` from its value on, what stands before being the query's `start`.
    """

    def ask(fact: Fact, number: int, about: str, kind: str, named: dict[str, str]) -> Query:
        value, detail = drawn = lives.values[number][fact.name]
        question = pick(rng, fact.questions, split).format(n=about, w=detail)
        if answers == "value":
            return Query(question, (value, DIGITS[value]) if value in DIGITS else (value,), kind)
        return say(Query(question, (value,), kind), fact, drawn, named)

    def say(query: Query, fact: Fact | None, drawn: tuple[str, str], named: dict[str, str]) -> Query:
        """The query with its answer in a sentence, which with `continued` has something before the answer."""
        (value,) = query.answers
        if answers == "spaced":
            return query._replace(answers=(f" {value}",))
        told = sentence(rng, split, fact, drawn, named) if fact and rng.random() < 0.5 else ""
        if not told or (answers == "continued" and told.find(value) < 1):
            told = FRAMES[rng.integers(len(FRAMES))].format(value)
        if answers == "sentence":
            return query._replace(answers=(told,))
        start = told[: told.index(value)].rstrip()
        return query._replace(start=start, answers=(told[len(start) :],))

    stated = {(statement.person, statement.fact) for statement in statements if statement.fact}
    queries = [statement.claim for statement in statements if statement.claim]
    if answers != "value":
        queries = [say(query, None, ("", ""), {}) for query in queries]
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
                query = Query(question, (person.name,), "who")
                queries.append(query if answers == "value" else say(query, fact, drawn, named))
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
