"""On needles, with the default target: whoever has the document, or the right passage of it, beats who has nothing."""

import pytest

import d2l
from d2l.data.niah import needle_at
from d2l.experiments.baselines.methods import make_method


@pytest.fixture(scope="module")
def model():
    return d2l.load(dtype="bfloat16")


@pytest.fixture(scope="module")
def needles(model):
    return [needle_at(3, index, model.tokenizer, 110, 125) for index in range(3)]


def found(model, needles, name, **options):
    """How many answers name the number."""
    method = make_method(model, name, 16, options)
    return sum(n.answer in method.answer([n.document], [n.question])[0].text for n in needles)


def test_in_context_and_retrieval_beat_no_context(model, needles):
    one_passage = {"count": 1, "passage_tokens": 32}
    assert found(model, needles, "no_context") == 0
    assert found(model, needles, "in_context") >= 2
    assert found(model, needles, "bm25", **one_passage) >= 2
    assert found(model, needles, "embedding", **one_passage) >= 2
