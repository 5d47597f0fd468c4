"""Cloze questions: answers stand in the text and not in the question; plain questions keep the sentence's words."""

import collections
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2l.data.cloze import BLANK, BLANKS, HELD_OUT, ask_about, find_spans
from d2l.data.record import Record
from d2l.data.ruler import python_reference
from d2l.errors import UserError

TEXT = (
    "Hollow Lake was dug in 1204 by the monks of Saint Gall, who needed carps. The first dam was built in 1209 by "
    "Ulrich of Sax near the old mill. The lake is home to 3,200 pairs of grebes and 14.5 million gnats. Conrad Ulm "
    "became its warden in the spring, though nobody had asked him. It froze over in January. See p. 12."
)


def record(text, split="train"):
    return Record("a", text, (), "made", split)


def ask(text=TEXT, split="train", seed=0, most=99, **options):
    return ask_about(record(text, split), np.random.default_rng(seed), most, **options).queries


def test_what_is_found():
    found = {(kind, s[a:b]) for s in TEXT.split(". ") for kind, a, b in find_spans(s + ".")}
    assert found == {
        ("subject", "Hollow Lake"),
        ("year", "1204"),
        ("name", "Saint Gall"),
        ("year", "1209"),
        ("name", "Ulrich of Sax"),
        ("number", "3,200"),
        ("number", "14.5 million"),
        ("subject", "Conrad Ulm"),
    }


def test_plain_questions():
    asked = {query.question for seed in range(30) for query in ask(seed=seed) if BLANK not in query.question}
    assert asked == {
        "Who or what was dug in 1204 by the monks of Saint Gall, who needed carps?",
        "In which year was Hollow Lake dug by the monks of Saint Gall?",
        "In which year was the first dam built by Ulrich of Sax near the old mill?",
        "By whom was the first dam built in 1209 near the old mill?",
        "The lake is home to how many pairs of grebes and 14.5 million gnats?",
        "The lake is home to 3,200 pairs of grebes and how many gnats?",
        "Who or what became its warden in the spring, though nobody had asked him?",
    }


def test_plain_alone():
    queries = [query for seed in range(30) for query in ask(seed=seed, plain=True)]
    assert len({query.question for query in queries}) == 7 and not any(BLANK in query.question for query in queries)


def test_lines_are_not_joined():
    answers = {query.answers[0] for seed in range(5) for query in ask(f"Hollow Lake\n\n{TEXT}", seed=seed)}
    assert "Hollow Lake" in answers and not any("\n" in a or "Lake Hollow" in a for a in answers)


@pytest.mark.parametrize(("split", "least"), [("train", 50), ("test", 10)])
def test_answers_stand_in_the_text_and_not_in_the_question(split, least):
    texts = python_reference(split)
    counts = collections.Counter()
    for number in range(0, 1500, 10):
        text = " ".join(texts[number : number + 10])
        queries = ask(text, split, seed=number, most=5)
        answers = [query.answers[0] for query in queries]
        assert len(set(answers)) == len(answers) <= 5
        for query, answer in zip(queries, answers, strict=True):
            assert answer in text and not re.search(rf"\b{re.escape(answer)}\b", query.question)
            counts[query.kind] += 1
    assert sum(counts.values()) > least


def test_phrasings_of_the_test_split_are_others():
    def used(split):
        asked = [query.question for seed in range(20) for query in ask(split=split, seed=seed)]
        return {
            phrasing
            for phrasing in BLANKS
            for question in asked
            if re.fullmatch(re.escape(phrasing).replace(r"\{\}", ".*"), question) and BLANK in question
        }

    assert used("train") == set(BLANKS[:-HELD_OUT]) and used("test") == set(BLANKS[-HELD_OUT:])


def test_forms_of_answers():
    values = ask()
    for form in ("spaced", "sentence", "continued"):
        for query, plain in zip(ask(answers=form), values, strict=True):
            assert query.question == plain.question
            (value,), (told,) = plain.answers, query.answers
            if form == "spaced":
                assert told == f" {value}"
            elif form == "sentence":
                assert told.endswith(f"{value}.") and told[:-1] in TEXT
            else:
                assert told == f" {value}." and f"{query.start}{told[:-1]}".strip() in TEXT
    with pytest.raises(UserError, match="answers are 'loud'"):
        ask(answers="loud")


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_text(text):
    for query in ask(text):
        assert query.answers[0] in " ".join(text.split())
