"""RULER's needle tasks: every answer stands in the document once, and nothing of it in another split."""

import itertools
import re

import pytest
from wonderwords import RandomWord

from d2l import cli
from d2l.cli_options import target_tokenizer
from d2l.data.jsonl import read_records
from d2l.data.ruler import NOUNS, TASKS, python_reference, ruler_at
from d2l.errors import UserError
from d2l.experiments.sources import take_records

FACT = re.compile(r"One of the special magic (number|UUID)s for ([^.:]+) is: (\S+)\.(?= |$)")
LENGTHS = {"multikey_2": (600, 900), "multikey_3": (1500, 2200), "multikey_1": (900, 1200)}


@pytest.fixture(scope="module")
def tokenizer():
    return target_tokenizer(None)


@pytest.mark.parametrize("task", TASKS)
def test_answers_stand_in_the_document(task, tokenizer):
    low, high = LENGTHS.get(task, (400, 700))
    spec, lengths, places = TASKS[task], [], []
    for index in range(12):
        record = ruler_at(task, "test", 0, index, tokenizer, low, high)
        lengths.append(len(tokenizer.encode(record.context)))
        ((question, (answer,), kind, *_),) = record.queries
        facts = [m.groups()[1:] for m in FACT.finditer(record.context)]
        asked = [key for key, _ in facts if re.search(rf"(?<![\w-]){re.escape(key)}(?![\w-])", question)]
        assert len(set(asked)) == spec.asked and kind == task
        in_order = sorted(dict.fromkeys(asked), key=question.index)
        assert answer == ", ".join(value for key in in_order for k, value in facts if k == key)
        assert len({value for _, value in facts}) == len(facts)  # no value twice
        assert len({key for key, _ in facts}) == len(facts) // spec.per_key
        if spec.haystack != "needles":
            assert len(facts) == spec.needles * spec.per_key
        places.append(record.context.index(answer.split(",")[0]) / len(record.context))
    assert all(low - 100 <= length <= high for length in lengths)
    assert max(places) - min(places) > (0.4 if spec.per_key == 1 else 0.2)  # of several values the first one's
    assert ruler_at(task, "test", 0, 3, tokenizer, low, high) == ruler_at(task, "test", 0, 3, tokenizer, low, high)


@pytest.mark.parametrize("words", ["ruler", "few"])
def test_splits_share_no_text_and_no_nouns(words, tokenizer):
    texts = {split: set(python_reference(split)) for split in ("train", "validation", "test")}
    for a, b in itertools.combinations(texts.values(), 2):
        assert min(len(a), len(b)) > 100 and not a & b
    keys = {
        split: [
            key
            for index in range(40)
            for _, key, _ in FACT.findall(
                ruler_at("multikey_1", split, 0, index, tokenizer, 400, 600, words=words).context
            )
        ]
        for split in texts
    }
    # Nouns may have a hyphen themselves.
    ends = {split: {key[key.index("-") + 1 :] for key in keys[split]} for split in keys}
    assert all(len(a) > 5 and not a & b for a, b in itertools.combinations(ends.values(), 2))
    assert (len(ends["test"]) > 200) == (words == "ruler")


def test_long_haystacks_of_needles_do_not_run_out_of_keys(tokenizer):
    record = ruler_at("multikey_2", "test", 0, 0, tokenizer, 120_000, 121_000)
    assert len(FACT.findall(record.context)) > 4000


def test_needles_alone_and_ranges_that_hold_nothing(tokenizer):
    record = ruler_at("single_2", "train", 0, 0, tokenizer, 0, 30)
    assert FACT.match(record.context)
    with pytest.raises(UserError, match="must stand in a text of 5 to 9 tokens"):
        ruler_at("single_3", "train", 0, 0, tokenizer, 5, 9)
    with pytest.raises(UserError, match="no task 'single_4' here: give one of single_1"):
        ruler_at("single_4", "train", 0, 0, tokenizer, 5, 9)
    with pytest.raises(UserError, match="no split 'dev'"):
        ruler_at("single_1", "dev", 0, 0, tokenizer, 50, 90)


def test_documents_to_train_on_have_several_needles_and_questions(tokenizer):
    counts = []
    for index in range(12):
        record = ruler_at("multiquery", "train", 0, index, tokenizer, 0, 300, needles=(4, 8), queries=2)
        values = {key: value for _, key, value in FACT.findall(record.context)}
        counts.append((len(values), len(record.queries)))
        told = [value for query in record.queries for value in query.answers[0].split(", ")]
        assert set(told) <= set(values.values()) and len(set(told)) == len(told) == 4 * len(record.queries)
    assert {count for count, _ in counts} > {4, 8} and all(asked == count // 4 for count, asked in counts)
    plain = ruler_at("multikey_1", "train", 0, 3, tokenizer, 200, 300)
    several = ruler_at("multikey_1", "train", 0, 3, tokenizer, 200, 300, queries=20)
    assert several.context == plain.context and several.queries[:1] == plain.queries and len(several.queries) == 8
    with pytest.raises(UserError, match="multiquery with 2 to 5 needles and 1 questions: give at least 4 needles"):
        ruler_at("multiquery", "train", 0, 0, tokenizer, 0, 300, needles=(2, 5))
    with pytest.raises(UserError, match="with 1 to 1 needles and 0 questions"):
        ruler_at("single_1", "train", 0, 0, tokenizer, 0, 300, queries=0)


@pytest.mark.parametrize("task", ["single_3", "multikey_1", "multiquery"])
def test_answers_in_sentences(task, tokenizer):
    """The same documents and keys; the sentence names every key before the values, and `continued` is cut between."""
    for index in range(5):
        options = {"needles": (4, 8), "queries": 2}
        plain, told, rest = (
            ruler_at(task, "train", 0, index, tokenizer, 400, 900, answers=form, short=form == "value", **options)
            for form in ("value", "sentence", "continued")
        )
        assert plain.context == told.context == rest.context and plain.queries
        for short, long, cut in zip(plain.queries, told.queries, rest.queries, strict=True):
            assert "Reply with only" in short.question and "Reply" not in long.question == cut.question
            assert cut.start + cut.answers[0] == long.answers[0] and cut.answers[0] == f" {short.answers[0]}."
            assert not any(value in cut.start for value in short.answers[0].split(", ")) and cut.start.endswith(":")
            key = re.search(r"for (.+?)(?:[,?]| and )", short.question)[1]
            assert key in cut.start
    joined = ruler_at(task, "train", 0, index, tokenizer, 400, 900, answers="joined", short=False, **options)
    pairs = [(q.question, q.answers[0].replace(":", ": ", 1)) for q in joined.queries]
    assert pairs == [(q.question, q.answers[0]) for q in told.queries]
    quoted = ruler_at(task, "train", 0, index, tokenizer, 400, 900, answers="quoted", short=False, **options)
    for short, quote in zip(plain.queries, quoted.queries, strict=True):
        sentences = re.findall(r"One of .*?\.", quote.answers[0])
        assert all(re.sub(r":(?=\d)", ": ", sentence) in quoted.context for sentence in sentences)
        values = [re.search(r":( ?)(.*)\.", sentence).groups() for sentence in sentences]
        assert [value for _, value in values] == short.answers[0].split(", ")
        assert all((space == "") == value[0].isdigit() for space, value in values)
    begun = ruler_at(task, "train", 0, index, tokenizer, 400, 900, begun=True, **options)
    for query, short, cut in zip(begun.queries, plain.queries, rest.queries, strict=True):
        assert query._replace(start="") == short
        # The document's own sentence up to the one value.
        assert (
            query.start == cut.start
            if ", " in short.answers[0]
            else f"{query.start} {short.answers[0]}." in begun.context
        )
    with pytest.raises(UserError, match="goes on with the value, answers are 'quoted'"):
        ruler_at(task, "train", 0, index, tokenizer, 400, 900, answers="quoted", begun=True, **options)
    spaced = ruler_at(task, "train", 0, index, tokenizer, 400, 900, answers="spaced", **options)
    assert [q.answers[0] for q in spaced.queries] == [f" {q.answers[0]}" for q in plain.queries]
    with pytest.raises(UserError, match="answers are 'all'"):
        ruler_at(task, "train", 0, 0, tokenizer, 400, 900, answers="all")


def test_words_of_the_vocabulary(tokenizer):
    """Many over all documents, few in each, none that another split holds out."""
    seen, shared = set(), 0
    published = RandomWord().filter(include_categories=["noun"])
    held_out = {noun for nouns in (NOUNS, published) for i, noun in enumerate(nouns) if i % 8 >= 6}
    for index in range(40):
        options = {"needles": (8, 8), "words": "vocabulary"}
        record = ruler_at("multikey_1", "train", 0, index, tokenizer, 300, 420, **options)
        keys = [match[2].split("-") for match in FACT.finditer(record.context)]
        assert len({tuple(key) for key in keys}) == 8
        words = {word for key in keys for word in key}
        assert not words & held_out
        shared += len(words) < 14
        seen |= words
    assert shared > 20 and len(seen) > 300 and len(held_out) > 1000
    with pytest.raises(UserError, match="words are 'all'"):
        ruler_at("multikey_1", "train", 0, 0, tokenizer, 300, 420, words="all")


def test_the_command_and_the_evaluation_give_the_same(tmp_path, tokenizer):
    out = tmp_path / "r.jsonl"
    options = ("--split", "test", "--samples", "2", "--lengths", "100-200", "--tasks", "single_1,multiquery")
    assert cli.main(["data", "ruler", "--out", str(out), *options]) == 0
    records = list(read_records(out))
    assert [record.queries[0].kind for record in records] == ["single_1", "multiquery"] * 2
    taken = take_records(tokenizer, data="ruler", documents=2, task="multiquery", tokens=(100, 200))
    assert [record.context for record in taken] == [record.context for record in records[1::2]]
