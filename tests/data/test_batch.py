"""Training batches: what is in them, and that nothing is cut off."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2l.data.batch import Example, NeedleBatches, NeedleStage, Shapes, make_batch
from d2l.data.chunk import CHUNK_PROBS, draw_num_chunks
from d2l.errors import UserError
from d2l.hypernet.chunk import split_into, split_tokens


@given(length=st.integers(1, 500), count=st.integers(1, 40))
def test_chunks_cover_the_document_in_equal_parts(length, count):
    ids = list(range(length))
    chunks = split_into(ids, count)
    assert [i for chunk in chunks for i in chunk] == ids
    assert len(chunks) <= count and all(chunks)
    assert len({len(chunk) for chunk in chunks[:-1]}) <= 1


@given(length=st.integers(1, 500), limit=st.integers(1, 60))
def test_as_few_chunks_as_the_limit_allows(length, limit):
    chunks = split_tokens(list(range(length)), limit)
    assert max(map(len, chunks)) <= limit
    assert len(chunks) <= -(-length // limit)


def test_empty_documents_have_no_chunks():
    with pytest.raises(UserError, match="empty"):
        split_tokens([], 10)


def test_chunk_counts_follow_the_papers_distribution():
    rng = np.random.default_rng(0)
    drawn = np.bincount([draw_num_chunks(rng, 800, 1, 800, 8) for _ in range(4000)], minlength=9) / 4000
    np.testing.assert_allclose(drawn[1:], list(CHUNK_PROBS.values()), atol=0.03)
    fits = {draw_num_chunks(rng, 800, 100, 300, 8) for _ in range(300)}
    assert fits == {3, 4, 5, 6, 7, 8}
    assert draw_num_chunks(rng, 5000, 100, 300, 8) == 17


SHAPES = Shapes(contexts=2, chunks=4, queries=4, ctx_tokens=40, query_tokens=40, response_tokens=8, teacher_tokens=80)


def two_documents(tokenizer):
    chunks = split_into(tokenizer.encode("The grass is green. The sky is blue."), 2)
    return [
        Example(chunks, [("What is the sky?", "blue"), ("What is the grass?", "green")]),
        Example([tokenizer.encode("Here we go.")], [("What is the sky?", "77")]),
    ]


def test_positions_predict_the_response_and_weights_sum_to_one(tokenizer):
    batch = make_batch(two_documents(tokenizer), tokenizer, SHAPES)
    assert batch["query_weight"].tolist() == [0.25, 0.25, 0.5, 0.0]
    assert batch["chunk_context"].tolist() == [0, 0, 1, -1] and batch["chunk_slot"].tolist() == [0, 1, 0, 0]
    for tokens, index in (("query_tokens", "response_index"), ("teacher_tokens", "teacher_index")):
        for q, answer in enumerate(["blue", "green", "77"]):
            count = int(batch["response_mask"][q].sum())
            response = batch["response_tokens"][q, :count].tolist()
            assert response == [*tokenizer.encode(answer), tokenizer.eos_ids[0]]
            at = batch[index][q, :count]
            # The token after each position is the one it predicts; the last, end of turn, is never read.
            assert batch[tokens][q, at[:-1] + 1].tolist() == response[:-1]
            assert at.tolist() == list(range(at[0], at[0] + count))


def test_prompts_are_those_of_use(tokenizer):
    batch = make_batch(two_documents(tokenizer), tokenizer, SHAPES)
    asked = tokenizer.user_turn("What is the sky?")
    assert batch["query_tokens"][0, : len(asked)].tolist() == asked
    assert batch["response_index"][0, 0] == len(asked) - 1
    prefix, suffix = tokenizer.turn_wrapper
    wrapped = [*prefix, *two_documents(tokenizer)[1].chunks[0], *suffix]
    assert batch["ctx_tokens"][2][batch["ctx_mask"][2]].tolist() == wrapped
    document = [i for chunk in two_documents(tokenizer)[0].chunks for i in chunk]
    whole = [*prefix, *document, *tokenizer.encode("\n\n"), *tokenizer.encode("What is the sky?"), *suffix]
    assert batch["teacher_tokens"][0, : len(whole)].tolist() == whole


@pytest.mark.parametrize("field", ["contexts", "chunks", "queries", "ctx_tokens", "query_tokens", "response_tokens"])
def test_what_does_not_fit_is_named_and_never_cut(tokenizer, field):
    small = dataclasses.replace(SHAPES, **{field: 1})
    with pytest.raises(UserError, match="room for 1"):
        make_batch(two_documents(tokenizer), tokenizer, small)


@settings(max_examples=15, deadline=None)
@given(low=st.integers(0, 100), high=st.integers(101, 400), max_chunks=st.integers(4, 8), seed=st.integers(0, 99))
def test_needle_batches_fit_their_shapes(tokenizer, low, high, max_chunks, seed):
    stage = NeedleStage(
        contexts=5, min_tokens=low, max_tokens=high, max_chunk_len=100, max_chunks=max_chunks, chunks=14
    )
    batches = NeedleBatches(stage, tokenizer, seed)
    batch = batches[3]
    for name, array in batches[3].items():
        np.testing.assert_array_equal(array, batch[name])
    counts = np.bincount(batch["chunk_context"][batch["chunk_context"] >= 0], minlength=5)
    assert counts.min() >= 1 and counts.max() <= max_chunks
    assert batch["ctx_mask"].sum(1).max() <= 100 + sum(map(len, tokenizer.turn_wrapper))


def test_batches_come_in_order_wherever_they_start(tokenizer):
    stage = NeedleStage(contexts=2, min_tokens=0, max_tokens=60, max_chunk_len=100)
    batches = NeedleBatches(stage, tokenizer, 0)
    late = list(batches.iterate(2, 4))
    for index, batch in zip((2, 3), late, strict=True):
        for name, array in batches[index].items():
            np.testing.assert_array_equal(array, batch[name])
