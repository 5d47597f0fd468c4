"""Passages: nothing lost, nothing too long, cut where a reader would."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2l.data.passages import cut
from d2l.errors import UserError

TEXT = "The grass is green. The sky is blue.\n\nThe sun is yellow.\nHere we go.\n\nThere and back again. " * 8


@settings(max_examples=60, deadline=None)
@given(text=st.text("ab c.\n!é日", max_size=300), most=st.integers(1, 40))
def test_nothing_is_lost_and_nothing_too_long(tokenizer, text, most):
    passages = cut(text, tokenizer, most)
    assert "".join("".join(passages).split()) == "".join(text.split())
    for passage in passages:
        # A letter may take several tokens.
        assert len(tokenizer.encode(passage)) <= most or len(passage) == 1


def test_paragraphs_stay_whole_where_they_fit(tokenizer):
    passages = cut(TEXT, tokenizer, 60)
    assert len(passages) > 4
    for passage in passages:
        assert passage.startswith(("The", "Here", "There")) and passage.endswith(".")
        assert len(tokenizer.encode(passage)) > 30  # as long as the paragraphs allow
    short = cut("The sky is blue. " * 30, tokenizer, 20)
    assert all(passage.endswith("blue.") and passage.startswith("The sky") for passage in short)
    assert cut("The sky is blue.", tokenizer, 100) == ["The sky is blue."]


def test_short_rests_are_left_out(tokenizer):
    text = "The sky is blue. " * 30 + "\n\nHere we go."
    assert cut(text, tokenizer, 20)[-1].endswith("Here we go.")
    assert all(len(tokenizer.encode(p)) >= 12 for p in cut(text, tokenizer, 20, min_tokens=12))
    assert cut(" \n ", tokenizer, 5) == []
    with pytest.raises(UserError, match="passages of 0 tokens"):
        cut("x", tokenizer, 0)
