"""Records as JSON lines: read back as they were, mistakes told with their line, files whole or untouched."""

import json

import pytest

from d2l.data.jsonl import read_records, write_records
from d2l.data.record import Query, Record
from d2l.errors import UserError

RECORDS = [
    Record("a", "Naïve\ntext.", (Query("Q?", ("A", "B"), "who"), Query("R?", ())), "made", "train"),
    Record("a", "Another text.", (Query("Who?", (" Ann.",), start="It was"),), "made", "test"),
]


def test_records_come_back(tmp_path):
    path = tmp_path / "records.jsonl"
    assert write_records(path, iter(RECORDS)) == 2
    assert list(read_records(path)) == RECORDS
    path.write_text(path.read_text().replace("\n", "\n\n"))
    assert list(read_records(path)) == RECORDS


def line(**changes):
    return json.dumps(RECORDS[0].to_json() | changes)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "line 2 is no JSON"),
        ("[]", "line 2: a record is .*give an object with id, context"),
        (line(), "line 2: the id 'a' stands on line 1 already"),
        (line(id="b", answer="x"), "line 2: a record has the unknown field 'answer'"),
        (json.dumps({"id": "b"}), "line 2: a record has no 'context'"),
        (line(id=7), "line 2: 'id' of a record is 7: give text"),
        (line(id="b", queries="Q?"), "line 2: 'queries' of a record is 'Q.': give a list"),
        (line(id="b", queries=[{"question": "Q?"}]), "line 2: a query has no 'answers'"),
        (line(id="b", queries=[{"question": "Q?", "answers": [1]}]), "line 2: a query's answer is 1: give text"),
        (b"\xff", "line 2 is not UTF-8"),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path, text, why):
    path = tmp_path / "records.jsonl"
    path.write_bytes(line().encode() + b"\n" + (text if isinstance(text, bytes) else text.encode()))
    with pytest.raises(UserError, match=rf"{path}, {why}"):
        list(read_records(path))


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "records.jsonl"
    write_records(path, RECORDS)

    def broken():
        yield RECORDS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(path, broken())
    assert list(read_records(path)) == RECORDS and [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(UserError, match="no records to write"):
        write_records(path, [])
    with pytest.raises(UserError, match="cannot write .*none/x.jsonl"):
        write_records(tmp_path / "none" / "x.jsonl", RECORDS)
    with pytest.raises(UserError, match="cannot read .*none.jsonl"):
        list(read_records(tmp_path / "none.jsonl"))
