"""The input's order and packs: none twice, none lost, and the same whoever makes them and wherever one goes on."""

import collections
import dataclasses

import numpy as np
import pytest

from d2l.data.examples import ExampleMaker
from d2l.data.mixture import mixture, open_sources
from d2l.data.pack import Packer, Shapes
from d2l.data.record import Query, Record
from d2l.data.shards import Shards, write_records
from d2l.data.stream import PackStream
from d2l.errors import UserError
from tests.data.test_input import with_teacher

PACKS, WINDOW = 8, 60
SHAPES = Shapes(
    contexts=8, chunks=16, ctx_rows=2, ctx_tokens=320, query_rows=2, query_tokens=128, responses=64,
    row_chunks=8, row_contexts=8, max_chunks=4,
)  # fmt: skip


def documents(count, source="set", longest=40):
    """Documents of very different lengths with one to three questions."""
    rng = np.random.default_rng(0)
    for number in range(count):
        words = int(rng.geometric(0.12)) % longest + 1
        queries = [Query("What is the special magic number?", (f"{number:04d}",))] * int(rng.integers(1, 4))
        yield Record(str(number), "The sky is blue. " * words, tuple(queries), source, "train")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    write_records(folder, documents(400), shards=3)
    return Shards(folder)


@pytest.fixture(scope="module")
def examples(shards, tokenizer):
    """The endless order of packable examples, each with its record's id as the answer."""
    return mixture([(shards, 1.0)], 5).map_with_index(ExampleMaker(tokenizer, 5, max_chunk_len=100, max_chunks=4))


def stream(examples, slots=range(PACKS), shapes=SHAPES):
    return PackStream(examples, list(slots), PACKS, lambda: Packer(shapes, 0), WINDOW)


def same(a, b):
    for one, two in zip(a, b, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


def test_an_epoch_holds_every_record_once_in_an_order_of_its_own(shards):
    order = mixture([(shards, 1.0)], 3)
    epochs = [[order[400 * epoch + i].id for i in range(400)] for epoch in range(2)]
    assert [len(set(epoch)) for epoch in epochs] == [400, 400]
    assert epochs[0] != epochs[1] != sorted(epochs[1], key=int)
    assert epochs[0] == [mixture([(shards, 1.0)], 3)[i].id for i in range(400)]
    assert epochs[0] != [mixture([(shards, 1.0)], 4)[i].id for i in range(400)]


def test_sources_come_in_the_proportion_of_their_weights(shards, tmp_path):
    write_records(tmp_path / "few", documents(10, source="few"))
    data = {"many": {"path": str(shards.folder), "weight": 3.0}, "few": {"path": str(tmp_path / "few"), "weight": 1.0}}
    order = mixture(list(open_sources(data).values()), 0)
    counts = collections.Counter(order[i].source for i in range(400))
    assert counts == {"set": 300, "few": 100}
    few = [record.id for i in range(400) if (record := order[i]).source == "few"]
    assert all(len(set(few[i : i + 10])) == 10 for i in range(0, 100, 10))
    for wrong, message in (
        ({"x": {"path": "."}}, "give path and weight"),
        ({"x": {"path": ".", "weight": 0.0}}, "give a positive one"),
        ({}, "names no source"),
    ):
        with pytest.raises(UserError, match=message):
            open_sources(wrong)


class Positions:
    """An endless order that remembers which of its examples went into packs."""

    def __init__(self, examples):
        self.examples = examples

    def __getitem__(self, position):
        return self.examples[position], position


class Noting(Packer):
    """The packer, which notes the position of every example that it takes."""

    def __init__(self, shapes, taken):
        super().__init__(shapes, 0)
        self.taken = taken

    def add(self, pair):
        example, position = pair
        if fits := super().add(example):
            self.taken.append(position)
        return fits


def run(examples, processes, steps, state=None):
    """`steps` steps by so many processes, each with consecutive packs; what was taken, batches, and the new state."""
    share = PACKS // processes
    taken, batches, rows = [], [[] for _ in range(steps)], []
    for process in range(processes):
        slots = list(range(process * share, (process + 1) * share))
        feed = PackStream(Positions(examples), slots, PACKS, lambda: Noting(SHAPES, taken), WINDOW)
        if state is not None:
            feed.set_state(state[slots])
        for step in range(steps):
            batches[step] += next(feed)
        rows.append(feed.get_state())
        feed.close()
    return taken, batches, np.concatenate(rows)


def test_no_example_twice_and_none_lost_when_the_number_of_processes_changes(examples):
    """One process, then four, then two: the same packs as by one process alone, and an epoch in one piece."""
    alone, batches, _ = run(examples, 1, 9)
    first, one, state = run(examples, 1, 3)
    second, four, state = run(examples, 4, 3, state)
    third, two, state = run(examples, 2, 3, state)
    for a, b in zip(batches, one + four + two, strict=True):
        same(a, b)
    taken = first + second + third
    assert sorted(taken) == sorted(alone) and len(set(taken)) == len(taken)
    # Whatever was not taken yet waits in a window: nothing between the taken ones was dropped.
    waiting = {slot + number * PACKS for slot, row in enumerate(state.tolist()) for number in row[1:]}
    assert not waiting & set(taken)
    for slot, row in enumerate(state.tolist()):
        assert {p for p in [*taken, *waiting] if p % PACKS == slot} == {slot + n * PACKS for n in range(row[0])}


def test_packs_are_full(examples):
    """Rows of an example's mean proportions, a dozen examples a row."""
    shapes = Shapes(
        contexts=40, chunks=120, ctx_rows=2, ctx_tokens=1024, query_rows=2, query_tokens=620, responses=640,
        row_chunks=40, row_contexts=40, max_chunks=4,
    )  # fmt: skip
    feed = stream(examples, range(2), shapes)
    used = size = 0
    for _ in range(6):
        for batch in next(feed):
            used += int((batch["ctx_segments"] >= 0).sum()) + int((batch["query_segments"] >= 0).sum())
            size += batch["ctx_segments"].size + batch["query_segments"].size
    feed.close()
    assert used / size >= 0.9
    assert feed.left_out == 0


def test_examples_larger_than_a_pack_are_left_out_and_told(tokenizer, tmp_path, caplog):
    huge = Record("huge", "Here we go. " * 200, (Query("What?", ("1",)),), "set", "train")
    write_records(tmp_path, [*documents(30, longest=10), huge])
    maker = ExampleMaker(tokenizer, 0, max_chunk_len=100, max_chunks=4)
    feed = stream(mixture([(Shards(tmp_path), 1.0)], 0).map_with_index(maker), [0])
    for _ in range(12):
        next(feed)
    feed.close()
    assert feed.left_out >= 1
    assert len(caplog.messages) == 1 and "left out" in caplog.text
    write_records(tmp_path, [huge])
    feed = stream(mixture([(Shards(tmp_path), 1.0)], 0).map_with_index(maker), [0])
    with pytest.raises(UserError, match="none of many examples fits"):
        next(feed)
    feed.close()


def test_a_stored_teacher_is_what_is_trained_on(tokenizer):
    plain = next(documents(1))
    response = [7, 8, 9]
    maker = ExampleMaker(tokenizer, 0, max_chunk_len=100, max_chunks=4, stored_teacher=3)
    for query, source in zip(maker(0, taught := with_teacher(plain, response)).queries, taught.queries, strict=True):
        assert query.response == response
        np.testing.assert_array_equal(query.teacher[0], source.teacher.tokens)
        np.testing.assert_array_equal(query.teacher[1], source.teacher.logp)
    with pytest.raises(UserError, match="no query with a teacher"):
        maker(0, plain)
    # References as they stand: sure of every token, and next to stored ones in one data set.
    both = dataclasses.replace(maker, references=True)
    assert [q.response for q in both(0, taught).queries] == [response] * len(taught.queries)
    for made, source in zip(both(0, plain).queries, plain.queries, strict=True):
        assert made.response == [*tokenizer.encode(source.answers[0]), tokenizer.eos_ids[0]]
        tokens, logp = made.teacher
        assert tokens.shape == logp.shape == (len(made.response), 3) and tokens[:, 0].tolist() == made.response
        np.testing.assert_array_equal(np.exp(logp), [[1, 0, 0]] * len(made.response))
    # A step that computes the teacher does so on what it said, and on the reference where nothing is stored.
    live = ExampleMaker(tokenizer, 0, max_chunk_len=100, max_chunks=4, teacher_prompts=True)
    assert all(
        made.response == response and made.teacher is None and made.teacher_prompt for made in live(0, taught).queries
    )
    for made, source in zip(live(0, plain).queries, plain.queries, strict=True):
        assert made.response == [*tokenizer.encode(source.answers[0]), tokenizer.eos_ids[0]]
    hidden = Record("7", plain.context, (Query("What?", ()),), "set", "test")
    with pytest.raises(UserError, match="record '7' of set .test. has no query with an answer"):
        ExampleMaker(tokenizer, 0, max_chunk_len=100, max_chunks=4)(0, hidden)


def test_a_document_is_cut_the_same_way_at_the_same_position(tokenizer):
    long = Record("1", "The grass is green. " * 12, (Query("What?", ("1",)),), "set", "train")
    maker = ExampleMaker(tokenizer, 0, max_chunk_len=100, max_chunks=4)
    counts = [len(maker(position, long).chunks) for position in range(40)]
    assert counts == [len(maker(position, long).chunks) for position in range(40)]
    assert len(set(counts)) > 1 and max(counts) <= 4


def test_a_document_is_cut_between_its_sentences(tokenizer):
    long = Record("1", "The grass is green. " * 12 + "Here we go!", (Query("What?", ("1",)),), "set", "train")
    maker = ExampleMaker(tokenizer, 0, max_chunk_len=100, max_chunks=4, chunk_at="sentences")
    prefix, suffix = map(len, tokenizer.turn_wrapper)
    cut = [[tokenizer.decode(ids[prefix:-suffix]) for ids in maker(place, long).chunks] for place in range(40)]
    assert all("".join(texts) == long.context for texts in cut)
    assert all(text.strip()[-1] in ".!" for texts in cut for text in texts)
    assert max(map(len, cut)) > 1
    # Where whole sentences would be too many chunks, they are cut.
    maker = ExampleMaker(tokenizer, 0, max_chunk_len=30, max_chunks=4, chunk_at="sentences")
    assert max(len(maker(place, long).chunks) for place in range(40)) <= 4
