"""Records on disk: what is written comes back, and damage is told before anything is trained on it."""

import dataclasses
import json

import numpy as np
import pytest

from d2l.data.codec import decode, encode
from d2l.data.record import Query, Record, Teacher
from d2l.data.shards import Shards, write_records
from d2l.errors import UserError


def record(number: int, words: int = 5, queries: int = 1, source: str = "set") -> Record:
    asked = tuple(Query(f"What is {number}.{i}?", (f"{number}{i}", "other")) for i in range(queries))
    return Record(str(number), f"{number}: " + "The sky is blue. " * words, asked, source, "train")


def with_teacher(plain: Record, response: list[int], k: int = 3) -> Record:
    rng = np.random.default_rng(len(response))
    shape = (len(response), k)
    teacher = Teacher(np.int32(response), rng.integers(0, 200, shape, np.int32), np.log(rng.random(shape, np.float32)))
    queries = tuple(query._replace(teacher=teacher) for query in plain.queries)
    return dataclasses.replace(plain, queries=queries)


def test_codec_returns_every_bit_and_notices_a_wrong_one():
    plain = record(3, queries=2)
    assert decode(encode(plain)) == plain
    taught = with_teacher(plain, [5, 6, 7])
    for before, after in zip(taught.queries, decode(encode(taught)).queries, strict=True):
        assert before[:3] == after[:3]
        for a, b in zip(before.teacher, after.teacher, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
    data = bytearray(encode(taught))
    for place in range(0, len(data), 7):
        data[place] ^= 1
        with pytest.raises(ValueError, match="checksum"):
            decode(bytes(data))
        data[place] ^= 1


def test_shards_return_what_was_written(tmp_path):
    records = [record(i) for i in range(7)]
    assert write_records(tmp_path / "r", records, shards=3) == 7
    shards = Shards(tmp_path / "r")
    assert sorted((shards[i] for i in range(len(shards))), key=lambda r: r.id) == records
    index = json.loads((tmp_path / "r" / "records.json").read_text())
    assert index["sources"] == {"set/train": 7}
    assert [shard["records"] for shard in index["shards"].values()] == [3, 2, 2]


def test_unusable_records_replace_nothing(tmp_path):
    write_records(tmp_path / "r", [record(0)])
    for records, message in [
        ([], "0 records do not fill 1 shards"),
        ([record(1), record(1)], "have the id '1'"),
        ([with_teacher(record(1), [4])], "say which target"),
    ]:
        with pytest.raises(UserError, match=message):
            write_records(tmp_path / "r", records)
    assert Shards(tmp_path / "r")[0] == record(0)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def _cut(bytes_left):
    return lambda path: path.write_bytes(path.read_bytes()[:bytes_left])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[30_000] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "missing": (lambda path: path.unlink(), "is missing"),
    "cut": (_cut(70_000), "truncated or damaged"),
    "empty": (_cut(0), "truncated or damaged"),
    "overwritten": (lambda path: path.write_bytes(b"\7" * path.stat().st_size), "damaged"),
    "flipped": (_flip, "record 0 of .* is damaged"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_shard_is_named(tmp_path, case):
    damage, message = DAMAGE[case]
    # Random letters hardly compress: a shard is then larger than what is cut off.
    rng = np.random.default_rng(0)
    records = [dataclasses.replace(record(i), context=rng.bytes(40_000).hex()) for i in range(4)]
    write_records(tmp_path / "r", records, shards=2)
    damage(sorted((tmp_path / "r").glob("*.array_record"))[0])
    with pytest.raises(UserError, match=message):
        Shards(tmp_path / "r")


def test_folders_that_hold_no_records(tmp_path):
    with pytest.raises(UserError, match="holds no records.json"):
        Shards(tmp_path)
    (tmp_path / "records.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Shards(tmp_path)
    with pytest.raises(UserError, match="mount the bucket"):
        Shards("gs://bucket/records")
