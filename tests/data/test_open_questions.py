"""Open questions: of every kind that a text gives, in its own words, without answers."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2l.data.open_questions import PHRASINGS, ask_openly
from d2l.data.record import Record
from d2l.data.ruler import python_reference

TEXT = (
    "The first dam was completed in 1209 by Ulrich of Sax near the old mill. The lake is home to 3,200 pairs of "
    "grebes. Conrad Ulm visited the Lower Lake, which froze. The Guild of Lake Wardens (GLW) feeds on carps, eels and "
    "trout. In January, the monks of Saint Gall left for the hills. See p. 12."
)


def ask(text=TEXT, seed=0, most=99):
    return ask_openly(Record("a", text, (), "made", "train"), np.random.default_rng(seed), most).queries


def test_what_is_asked():
    asked = collections.defaultdict(set)
    for seed in range(80):
        for query in ask(seed=seed):
            asked[query.kind].add(query.question)
    assert set(asked) == set(PHRASINGS)
    wanted = {
        "name": "What did Saint Gall do?",
        "year": "What happened in 1209?",
        "count": "How many pairs are there?",
        "short": "What does GLW stand for?",
        "subject": "When was the first dam completed?",
        "passive": "By whom was the first dam completed?",
        "active": "Who visited the Lower Lake?",
        "in_place": "The lake is home to how many pairs of grebes?",
    }
    assert {kind for kind, question in wanted.items() if question in asked[kind]} == set(wanted)
    assert "The first dam was completed in which year by Ulrich of Sax near the old mill?" in asked["in_place"]


def test_few_of_many_are_of_all_kinds():
    counts = collections.Counter(query.kind for seed in range(200) for query in ask(seed=seed, most=2))
    assert sum(counts.values()) == 400 and set(counts) == set(PHRASINGS)
    assert max(counts.values()) < 8 * min(counts.values())


def test_nothing_to_ask():
    assert ask("") == () and ask("nothing here that has a name") == ()


@pytest.mark.parametrize("split", ["train", "test"])
def test_real_texts(split):
    texts = python_reference(split)
    some = 0
    for number in range(0, 600, 10):
        queries = ask(" ".join(texts[number : number + 10]), seed=number, most=4)
        assert len({query.question for query in queries}) == len(queries) <= 4
        for query in queries:
            assert query.answers == () and query.question.endswith("?")
        some += bool(queries)
    assert some > 20


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=300), seed=st.integers(0, 9), most=st.integers(1, 5))
def test_any_text(text, seed, most):
    assert len(ask(text, seed, most)) <= most
