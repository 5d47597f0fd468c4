"""Biographies: what a page states answers its questions; splits share nothing; lengths stay in their range."""

import collections
import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2l.data.biographies.entities import BIRTHPLACE, COMPANY
from d2l.data.biographies.generate import biographies, biography_at, unrelated
from d2l.data.biographies.knowledge import TOPICS
from d2l.data.biographies.lives import FACTS
from d2l.data.biographies.names import SPLITS, TOWN_ENDS, TOWN_STARTS, num_people, person, person_at, share
from d2l.data.biographies.questions import FRAMES
from d2l.errors import UserError
from d2l.target.tokenizer import Tokenizer

ALL_FACTS = (*FACTS.values(), *COMPANY, *BIRTHPLACE)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """A tokenizer of pieces as short as those of a model's."""
    return Tokenizer.train([text for fact in ALL_FACTS for text in (*fact.sentences, *fact.questions)], 1500)


@pytest.fixture(scope="module")
def pages(words):
    return {split: list(biographies(split, 0, 150, words, 64, 1000)) for split in SPLITS}


def test_answers_stand_on_the_page_and_only_there(pages):
    kinds = collections.Counter()
    for record in (record for records in pages.values() for record in records):
        questions = [query.question for query in record.queries]
        assert len(set(questions)) == len(questions) > 0
        for query in record.queries:
            kinds[query.kind] += 1
            assert query.answers[0].lower() in record.context.lower(), query
            assert "{" not in query.question
        assert "{" not in record.context
    assert min(kinds[kind] for kind in ("fact", "who", "multi_hop", "contradiction")) > 50, kinds


def test_a_person_named_by_who_is_the_one_whose_paragraph_says_so(pages):
    """Only one paragraph holds the detail that a `who` question gives, and it opens with or tells of its answer."""
    checked = 0
    for record in pages["train"]:
        paragraphs = record.context.split("\n\n")
        for query in record.queries:
            if query.kind == "who" and (found := re.fullmatch(r"Who (?:works for|plays the) (.*)\?", query.question)):
                holding = [p for p in paragraphs if re.search(rf"\b{re.escape(found[1])}\b", p)]
                assert query.answers[0] in holding[0] and len(holding) == 1
                checked += 1
    assert checked > 20


def pattern(phrase):
    return re.compile(re.escape(phrase).replace(r"\{n\}", "(.+)", 1).replace(r"\{n\}", ".+").replace(r"\{w\}", ".+"))


PATTERNS = [(fact.name, pattern(phrase)) for fact in FACTS.values() for phrase in fact.questions]


def asked(question):
    """Which fact a question is about, and whose; a person or `NAME's spouse`."""
    return next(((name, found[1]) for name, p in PATTERNS if (found := p.fullmatch(question))), (None, ""))


def test_questions_in_two_steps_follow_the_page(pages):
    """They have the answer that the direct questions give, one after the other."""
    checked = 0
    for record in pages["train"] + pages["test"]:
        known = {asked(query.question): query.answers for query in record.queries if query.kind == "fact"}
        for query in record.queries:
            fact, about = asked(query.question)
            if query.kind == "multi_hop" and (steps := re.fullmatch("(.+)'s (spouse|mentor)", about)):
                (between,) = known[steps[2], steps[1]]
                assert known[fact, between] == query.answers, query
                checked += 1
    assert checked > 100


@pytest.mark.parametrize("form", ["sentence", "continued"])
def test_answers_in_sentences_name_the_value_and_the_person(pages, words, form):
    """About the same pages; every split has sentences of its own. A continued answer begins with what is asked for."""
    checked, framed = collections.Counter(), 0
    for split in SPLITS:
        told_pages = biographies(split, 0, 150, words, 64, 1000, answers=form)
        for short, record in zip(pages[split], told_pages, strict=True):
            assert record.context == short.context and len(record.queries) == len(short.queries)
            known = {asked(query.question): query.answers[0] for query in short.queries if query.kind == "fact"}
            names = {query.answers[0] for query in short.queries if query.kind == "who"}
            for query in record.queries:
                (answer,) = query.answers
                told = query.start + answer
                assert told.endswith(".") and "{" not in told and bool(query.start) == (form == "continued")
                checked[query.kind] += 1
                framed += any(told.startswith(frame.split("{")[0]) for frame in FRAMES)
                fact, about = asked(query.question)
                if query.kind == "fact":
                    assert known[fact, about].lower() in told.lower()
                elif query.kind == "who":
                    assert any(name in told for name in names)
                if form == "continued" and query.kind in ("fact", "who"):
                    values = [known[fact, about]] if query.kind == "fact" else names
                    assert answer.lstrip(' "').startswith(tuple(values)), query
    assert min(checked.values()) > 50 and 0.4 < framed / checked.total() < 0.75


def test_spaced_answers_are_the_values_after_a_space(pages, words):
    spaced = biographies("train", 0, 50, words, 64, 1000, answers="spaced")
    for plain, record in zip(pages["train"][:50], spaced, strict=True):
        assert [(q.question, (f" {q.answers[0]}",), q.kind) for q in plain.queries] == [q[:3] for q in record.queries]


def test_splits_share_no_people_places_or_phrasings(pages):
    people = {split: {person(split, i).name for i in range(num_people(split))} for split in SPLITS}
    firsts = {split: {name.split()[0] for name in names} for split, names in people.items()}
    lasts = {split: {name.split()[1] for name in names} for split, names in people.items()}
    for pool in (people, firsts, lasts):
        assert not pool["train"] & pool["test"] and not pool["train"] & pool["validation"]
        assert not pool["validation"] & pool["test"]
    for split in SPLITS:
        said = set(re.findall(r"\w+", " ".join(record.context for record in pages[split])))
        towns = {start + end for start in share(TOWN_STARTS, split) for end in TOWN_ENDS}
        assert len(said & firsts[split]) > 10 < len(said & towns)
        for other in set(SPLITS) - {split}:
            assert said & (firsts[other] | lasts[other]) == set()
            assert said & {start + end for start in share(TOWN_STARTS, other) for end in TOWN_ENDS} == set()
    # Phrasings: of every fact each split uses its own, and no two are the same.
    for fact in ALL_FACTS:
        for phrasings in (fact.sentences, fact.questions, *filter(None, [fact.who])):
            assert len(set(phrasings)) == len(phrasings) >= 3, fact.name
    for topic in TOPICS:
        train, held = share(topic.pairs, "train"), share(topic.pairs, "validation") + share(topic.pairs, "test")
        assert not set(train) & set(held) and len(held) >= 4
    claims = {
        split: {q.question for r in pages[split] for q in r.queries if q.kind == "contradiction"} for split in SPLITS
    }
    assert all(len(questions) > 3 for questions in claims.values())
    assert not claims["train"] & claims["test"] and not claims["train"] & claims["validation"]


def test_contradictions_state_what_is_not_so(pages):
    truth = {key: value for topic in TOPICS for key, value in topic.pairs}
    for record in (record for records in pages.values() for record in records):
        for query in record.queries:
            if query.kind == "contradiction":
                keys = [key for key in truth if re.search(rf"\b{re.escape(key)}\b", query.question)]
                assert keys and all(query.answers[0] != truth[key] for key in keys), query


@settings(max_examples=40, deadline=None)
@given(low=st.integers(0, 700), width=st.integers(0, 500), index=st.integers(0, 5000), split=st.sampled_from(SPLITS))
def test_lengths_stay_in_their_range(words, low, width, index, split):
    high = max(low + width, 80)
    record = biography_at(split, 1, index, words, low, high)
    length = len(words.encode(record.context))
    assert 0 < length <= high and record.queries
    if width >= 60:  # some sentence left over has fewer tokens
        assert length >= low


def test_lengths_fill_the_range(words):
    lengths = [len(words.encode(record.context)) for record in biographies("train", 2, 200, words, 100, 500)]
    assert np.histogram(lengths, bins=4, range=(100, 500))[0].min() > 25


def test_pages_are_distinct_and_a_function_of_their_index(words, pages):
    assert biography_at("train", 0, 7, words, 64, 1000) == pages["train"][7]
    assert biography_at("train", 1, 7, words, 64, 1000) != pages["train"][7]
    for split in SPLITS:
        total = min(num_people(split), 5000)
        assert len({person_at(split, 3, i) for i in range(total)}) == total >= 5000
        assert len({record.id for record in pages[split]}) == 150


def test_what_cannot_be_made_is_named(words):
    with pytest.raises(UserError, match="no split 'dev': give one of train, validation, test"):
        biography_at("dev", 0, 0, words, 32, 64)
    with pytest.raises(UserError, match="answers are 'long'"):
        biography_at("test", 0, 0, words, 32, 64, answers="long")
    with pytest.raises(UserError, match="no biography 999999 in test"):
        biography_at("test", 0, 999_999, words, 32, 64)
    for low, high in ((0, 2), (50, 40), (100_000, 100_001)):
        with pytest.raises(UserError, match=f"{low} to {high} tokens"):
            biography_at("train", 0, 0, words, low, high)


def test_unrelated_pages_ask_for_common_knowledge_that_they_do_not_contradict(words):
    def draw(split, count):
        return list(itertools.islice(unrelated(split, 0, words, 64, 400, queries=3, answers="spaced"), count))

    asked = {}
    for split in SPLITS:
        pairs = [pair for topic in TOPICS for pair in share(topic.pairs, split)]
        records = draw(split, 30)
        for record in records:
            page = biography_at(split, 0, int(record.id.partition("-")[2]), words, 64, 400)
            assert page.context == record.context and all(query.kind != "contradiction" for query in page.queries)
            assert len({query.question for query in record.queries}) == 3 and record.split == split
            for query in record.queries:
                assert any(key in query.question and query.answers == (f" {value}",) for key, value in pairs)
        asked[split] = {query.question for record in records for query in record.queries}
        assert records[:3] == draw(split, 3)
    assert all(len(a) > 10 and not a & b for a, b in itertools.combinations(asked.values(), 2))
    with pytest.raises(UserError, match="no split 'all'"):
        next(unrelated("all", 0, words, 64, 400))
