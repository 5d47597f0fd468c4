"""Packing: everything is where the fields say, nothing is cut off, and rows are full."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2l.data.pack import Example, Packer, Query, Shapes, batch_shapes, stack_groups
from d2l.errors import UserError

SHAPES = Shapes(
    contexts=4,
    chunks=8,
    ctx_rows=3,
    ctx_tokens=24,
    query_rows=3,
    query_tokens=20,
    responses=30,
    row_chunks=3,
    row_contexts=2,
    max_chunks=3,
    teacher_rows=4,
    teacher_tokens=30,
    teacher_top_k=2,
)


def random_example(rng) -> Example:
    def ids(low, high):
        return rng.integers(1, 99, rng.integers(low, high)).tolist()

    queries = []
    for _ in range(rng.integers(1, 3)):
        response = ids(1, 5)
        top = rng.integers(0, 99, (len(response), 2)), -rng.random((len(response), 2))
        queries.append(Query(ids(2, 7), response, ids(5, 20), tuple(map(np.asarray, top))))
    return Example([ids(2, 12) for _ in range(rng.integers(1, 4))], queries)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_everything_is_where_the_fields_say(seed):
    rng = np.random.default_rng(seed)
    packer, packed = Packer(SHAPES, 0), []
    for _ in range(6):
        example = random_example(rng)
        before = packer.finish()[0]
        if packer.add(example):
            packed.append(example)
        else:
            for name, array in packer.finish()[0].items():
                np.testing.assert_array_equal(array, before[name])
    batch, used, total = packer.finish()
    assert packed

    # ---- chunks, each in a segment of its own with positions from 0
    places = set()
    chunks = [(c, s, ids) for c, example in enumerate(packed) for s, ids in enumerate(example.chunks)]
    count = int((batch["chunk_context"] >= 0).sum())
    assert count == len(chunks) and (batch["chunk_context"][count:] == -1).all()
    for k, (context, slot, ids) in enumerate(chunks):
        row, segment = divmod(int(batch["chunk_place"][k]), SHAPES.row_chunks)
        mine = batch["ctx_segments"][row] == segment
        assert batch["ctx_tokens"][row][mine].tolist() == ids
        assert batch["ctx_positions"][row][mine].tolist() == list(range(len(ids)))
        assert (batch["chunk_context"][k], batch["chunk_slot"][k]) == (context, slot)
        places.add((row, segment))
    assert len(places) == len(chunks)

    # ---- responses: what comes before each token, in the student's and in the teacher's prompt
    at = 0
    for context, example in enumerate(packed):
        for query in example.queries:
            for prompts, prompt in (("query", query.prompt), ("teacher", query.teacher_prompt)):
                name = "response" if prompts == "query" else "teacher"
                for j in range(len(query.response)):
                    row, index = batch[f"{name}_row"][at + j], batch[f"{name}_index"][at + j]
                    mine = batch[f"{prompts}_segments"][row] == batch[f"{prompts}_segments"][row, index]
                    seen = batch[f"{prompts}_tokens"][row][mine & (np.arange(len(mine)) <= index)]
                    assert seen.tolist() == [*prompt, *query.response[:j]]
                    assert batch[f"{prompts}_positions"][row, index] == len(seen) - 1
            first = slice(at, at + len(query.response))
            row, slots = batch["response_row"][at], batch["query_slots"]
            assert batch["query_contexts"][row, slots[row, batch["response_index"][at]]] == context
            assert batch["response_tokens"][first].tolist() == list(query.response)
            assert len(set(batch["response_query"][first])) == 1
            np.testing.assert_array_equal(batch["teacher_top_tokens"][first], query.teacher[0])
            np.testing.assert_allclose(batch["teacher_top_logp"][first], query.teacher[1], rtol=1e-6)
            at += len(query.response)
    assert not batch["response_weight"][at:].any()
    assert batch["context_weight"].sum() == len(packed) == pytest.approx(batch["response_weight"].sum(), rel=1e-5)
    rows = [name for name in batch if name.endswith("_segments")]
    assert used == sum((batch[name] >= 0).sum() for name in rows)
    assert total == sum(batch[name].size for name in rows)


@pytest.mark.parametrize("field", ["contexts", "chunks", "max_chunks", "ctx_rows", "ctx_tokens", "responses"])
def test_what_no_group_has_room_for_is_named(field):
    example = Example([[1] * 9, [2] * 9], [Query([1, 2, 3], [4, 5, 6], [1, 2, 3, 4])])
    plain = dataclasses.replace(SHAPES, teacher_top_k=0, row_chunks=1)
    assert Packer(plain, 0).add(example)
    small = dataclasses.replace(plain, **{field: 0 if field == "contexts" else 1})
    with pytest.raises(UserError, match="raise the shapes"):
        Packer(small, 0).add(example)


def test_documents_of_fineweb_lengths_fill_rows_to_nine_tenths():
    """One chunk of 277 tokens in the mean, ten questions each, and whichever of 64 waiting documents fits."""
    rng = np.random.default_rng(0)

    def document():
        length = int(np.clip(rng.gamma(1.5, 185.0), 32, 2000))
        return Example(
            [[1] * length], [Query([1] * rng.integers(12, 32), [1] * rng.integers(5, 60)) for _ in range(10)]
        )

    shapes = Shapes(
        contexts=48,
        chunks=48,
        ctx_rows=4,
        ctx_tokens=2048,
        query_rows=7,
        query_tokens=2048,
        responses=10_000,
        row_chunks=32,
        row_contexts=8,
    )
    waiting, shares = [], []
    for _ in range(3):
        packer = Packer(shapes, 0)
        waiting += [document() for _ in range(64 - len(waiting))]
        while True:
            fitting = next((i for i, example in enumerate(waiting) if packer.add(example)), None)
            if fitting is None:
                break
            waiting[fitting : fitting + 1] = []
            waiting.append(document())
        _, used, total = packer.finish()
        shares.append(used / total)
    assert min(shares) >= 0.9, shares


def test_groups_of_a_host_stay_together():
    groups = [{"a": np.full(3, p)} for p in range(6)]
    stacked = stack_groups(groups, 2)["a"]
    assert stacked.shape == (2, 3, 3)
    assert stacked[:, :, 0].tolist() == [[0, 2, 4], [1, 3, 5]]
    shapes = batch_shapes(SHAPES, accumulate=2, groups=3)
    assert shapes["ctx_tokens"].shape == (2, 3, 3, 24) and shapes["teacher_top_logp"].dtype == np.float32
