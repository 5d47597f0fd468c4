"""Needle batches, and the examples that batches are made of."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2l.data.batch import NeedleBatches, NeedleStage, make_example
from d2l.data.chunk import CHUNK_PROBS, draw_num_chunks
from d2l.errors import UserError
from d2l.hypernet.chunk import Chunking, split_into, split_sentences, split_tokens


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


@given(length=st.integers(1, 500), limit=st.integers(2, 60), data=st.data())
def test_chunks_share_what_they_overlap(length, limit, data):
    overlap = data.draw(st.integers(0, limit - 1))
    ids = list(range(length))
    chunks = split_tokens(ids, limit, overlap)
    assert max(map(len, chunks)) <= limit
    assert [i for n, chunk in enumerate(chunks) for i in chunk[overlap if n else 0 :]] == ids
    assert all(len(chunk) > overlap for chunk in chunks[1:])
    for before, after in itertools.pairwise(chunks):
        assert after[:overlap] == before[len(before) - overlap :]


def test_an_overlap_as_long_as_a_chunk_is_refused():
    with pytest.raises(UserError, match="less than max_chunk_len, 10"):
        split_tokens([1, 2], 10, 10)


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


def test_prompts_are_those_of_use(tokenizer):
    parts = split_into(tokenizer.encode("The grass is green. The sky is blue."), 2)
    example = make_example(parts, [("What is the sky?", "blue")], tokenizer, teacher=True)
    prefix, suffix = tokenizer.turn_wrapper
    assert [list(chunk) for chunk in example.chunks] == [[*prefix, *part, *suffix] for part in parts]
    (query,) = example.queries
    assert query.prompt == tokenizer.user_turn("What is the sky?")
    assert query.response == [*tokenizer.encode("blue"), tokenizer.eos_ids[0]]
    document = [i for part in parts for i in part]
    asked = [*tokenizer.encode("\n\n"), *tokenizer.encode("What is the sky?")]
    assert query.teacher_prompt == [*prefix, *document, *asked, *suffix]
    # How a reply begins is given: it stands in both prompts and not in the response.
    begun = make_example(parts, [("What is the sky?", " blue")], tokenizer, starts=["It is"], teacher=True).queries[0]
    assert begun.prompt == query.prompt + tokenizer.encode("It is")
    assert begun.teacher_prompt == query.teacher_prompt + tokenizer.encode("It is")
    assert begun.response == [*tokenizer.encode(" blue"), tokenizer.eos_ids[0]]


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
    batch = {name: array[0, 0] for name, array in batch.items()}
    counts = np.bincount(batch["chunk_context"][batch["chunk_context"] >= 0], minlength=5)
    assert counts.min() >= 1 and counts.max() <= max_chunks
    assert (batch["ctx_segments"] >= 0).sum(1).max() <= 100 + sum(map(len, tokenizer.turn_wrapper))


def test_batches_come_in_order_wherever_they_start(tokenizer):
    stage = NeedleStage(contexts=2, min_tokens=0, max_tokens=60, max_chunk_len=100)
    batches = NeedleBatches(stage, tokenizer, 0)
    late = list(batches.iterate(2, 4))
    for index, batch in zip((2, 3), late, strict=True):
        for name, array in batches[index].items():
            np.testing.assert_array_equal(array, batch[name])


def test_documents_are_dealt_to_packs(tokenizer):
    stage = NeedleStage(contexts=8, min_tokens=0, max_tokens=60, max_chunk_len=24, max_chunks=3, chunks=16)
    batch = NeedleBatches(stage, tokenizer, 0, accumulate=2, groups=2)[0]
    assert {array.shape[:2] for array in batch.values()} == {(2, 2)}
    assert batch["context_weight"].shape == (2, 2, 2) and batch["context_weight"].sum() == 8
    assert batch["chunk_context"].shape == (2, 2, 4)
    with pytest.raises(UserError, match="8 contexts cannot be dealt to 3 packs"):
        NeedleBatches(stage, tokenizer, 0, groups=3)


def test_chunk_counts_of_a_stage_are_drawn(tokenizer):
    stage = NeedleStage(12, 300, 300, 200, max_chunks=8, chunk_counts=(5, 7))
    batch = NeedleBatches(stage, tokenizer, 0)[0]
    assert set(np.bincount(batch["chunk_context"][batch["chunk_context"] >= 0])) == {5, 7}


def test_chunks_share_rows_where_the_stage_says_so(tokenizer):
    alone = NeedleStage(8, 0, 120, 120, max_chunks=6, chunks=24)
    shared = dataclasses.replace(alone, row_chunks=6, ctx_rows=8)
    one, other = (NeedleBatches(stage, tokenizer, 0)[0]["chunk_place"] for stage in (alone, shared))
    assert one.shape == other.shape
    batches = NeedleBatches(shared, tokenizer, 0)
    for index in range(4):
        batch = {name: array[0, 0] for name, array in batches[index].items()}
        assert batch["ctx_tokens"].shape[0] == 8 and batch["ctx_segments"].max() >= 1
        real = batch["chunk_context"] >= 0
        assert len(set(batch["chunk_place"][real])) == real.sum() > 8
    with pytest.raises(UserError, match="3 ctx_rows of 6 chunks have no room for 24 chunks"):
        NeedleBatches(dataclasses.replace(shared, ctx_rows=3), tokenizer, 0)
    full = dataclasses.replace(shared, min_tokens=118, ctx_rows=4)
    with pytest.raises(UserError, match="found no room in 4 rows of .* tokens: raise ctx_rows"):
        NeedleBatches(full, tokenizer, 0)[0]


@given(length=st.integers(1, 300), limit=st.integers(1, 60), count=st.integers(1, 8), data=st.data())
def test_chunks_of_sentences_hold_every_token_once(length, limit, count, data):
    ids = list(range(length))
    starts = sorted(data.draw(st.sets(st.integers(1, length))) - {length})
    chunks = split_sentences(ids, starts, limit, count)
    assert [i for chunk in chunks for i in chunk] == ids
    assert all(chunks) and max(map(len, chunks)) <= limit
    assert len(chunks) <= 2 * max(count, -(-length // limit))
    begins = np.array([0, *starts, length])
    for cut in set(np.cumsum([len(chunk) for chunk in chunks])) - set(begins):
        after = np.searchsorted(begins, cut)
        assert begins[after] - begins[after - 1] > limit  # only what has no room in any chunk is cut


def test_chunks_end_where_sentences_do():
    sentences = [[i] * size for i, size in enumerate((7, 3, 6, 9, 5, 4, 8, 6))]
    ids = [i for sentence in sentences for i in sentence]
    starts = np.cumsum([len(sentence) for sentence in sentences])[:-1].tolist()
    chunks = split_sentences(ids, starts, 20)
    assert len(chunks) == 3
    assert all(len(set(before) & set(after)) == 0 for before, after in itertools.pairwise(chunks))
    cut = split_sentences(ids, [], 20)  # no sentence ends: equal shares
    assert [len(chunk) for chunk in cut] == [16, 16, 16]


def test_a_length_that_is_aimed_at():
    """Short sentences are put together up to about it, one longer than it stays whole."""
    sizes = (4, 5, 3, 14, 4, 4, 5, 3)
    ids = list(range(sum(sizes)))
    starts = np.cumsum(sizes)[:-1].tolist()

    def lengths(**aimed: int) -> list[int]:
        return [len(chunk) for chunk in Chunking(20, chunk_at="sentences", **aimed).split(ids, starts)]

    assert lengths() == [12, 14, 16]
    assert lengths(chunk_len=8) == [9, 3, 14, 4, 4, 8]
    assert lengths(chunk_len=1) == list(sizes)
    assert lengths(chunk_len=100) == lengths()
    with pytest.raises(UserError, match="chunk_len is -1: give a number of tokens"):
        Chunking(20, chunk_len=-1)
