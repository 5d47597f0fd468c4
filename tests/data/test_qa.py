"""Published sets load from small files of their true schemas, in every form that they are published in."""

import gzip
import json
import logging
import zipfile

import pyarrow
import pyarrow.parquet
import pytest

from d2l.data.qa.load import context_id, load_qa
from d2l.data.qa.overlap import check_overlap, overlap
from d2l.data.qa.sets import SETS
from d2l.data.record import Query, Record
from d2l.errors import UserError

RIVER, TOWN = "The Rhône flows through Lyon.", "Geneva lies on a lake."
SQUAD = [
    {"id": name, "title": "T", "context": context, "question": question, "answers": {"text": texts, "answer_start": at}}
    for name, context, question, texts, at in (
        ("s1", RIVER, "Which river?", ["Rhône", "the Rhône", "Rhône"], [4, 0, 4]),
        ("s2", TOWN, "Which town?", ["Geneva"], [0]),
        ("s3", RIVER, "Through what?", ["Lyon"], [24]),
    )
]
SQUAD_RECORDS = [
    (RIVER, (Query("Which river?", ("Rhône", "the Rhône")), Query("Through what?", ("Lyon",)))),
    (TOWN, (Query("Which town?", ("Geneva",)),)),
]
# A row of each set as published, and the context, question and answers that it means.
ROWS = {
    "drop": (
        {"section_id": "nfl_1", "query_id": "d1", "passage": "They scored 3 and 4.", "question": "How many?",
         "answers_spans": {"spans": ["7", "seven"], "types": ["number", "span"]}},
        ("They scored 3 and 4.", "How many?", ("7", "seven")),
    ),
    "ropes": (
        {"id": "r1", "background": "Heat melts ice.", "situation": "Ann heats ice, Bob does not.",
         "question": "Whose ice melts?", "answers": {"text": ["Ann"]}},
        ("Heat melts ice.\nAnn heats ice, Bob does not.", "Whose ice melts?", ("Ann",)),
    ),
    "pwc": (
        {"input": "A long passage.", "prompt": "Give a title.", "answer": " A title "},
        ("A long passage.", "Give a title.", ("A title",)),
    ),
    "qasper_e": (
        {"input": "What is used?", "context": "We use BERT.", "answers": ["BERT", "the BERT model"], "length": 3,
         "dataset": "qasper", "language": "en", "all_classes": None, "_id": "q1"},
        ("We use BERT.", "What is used?", ("BERT", "the BERT model")),
    ),
    "babilong_qa2": (
        {"input": "Mary took the apple. It rained.", "question": "Where is the apple? ", "target": "kitchen"},
        ("Mary took the apple. It rained.", "Where is the apple?", ("kitchen",)),
    ),
    "plain": (
        {"context": "c", "question": "q", "answer": "a"},
        ("c", "q", ("a",)),
    ),
}  # fmt: skip


def parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def content(records):
    return [(record.context, record.queries) for record in records]


def test_hub_folders_of_parquet(tmp_path, monkeypatch):
    parquet(tmp_path / "plain_text" / "train-00000-of-00002.parquet", SQUAD[:2])
    parquet(tmp_path / "plain_text" / "train-00001-of-00002.parquet", SQUAD[2:])
    parquet(tmp_path / "plain_text" / "validation-00000-of-00001.parquet", SQUAD[1:2])
    records = load_qa("squad", str(tmp_path), "train")
    assert content(records) == SQUAD_RECORDS
    assert records[0] == Record(context_id(RIVER), RIVER, SQUAD_RECORDS[0][1], "squad", "train")
    assert content(load_qa("squad", str(tmp_path), "validation")) == SQUAD_RECORDS[1:]
    with pytest.raises(UserError, match="no test split: it has train, validation"):
        load_qa("squad", str(tmp_path), "test")
    # The layout of the hub's own conversion, and the hub itself.
    parquet(tmp_path / "converted" / "default" / "train" / "0000.parquet", SQUAD)
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: asked.append((name, options)) or str(tmp_path)
    )
    assert content(load_qa("squad", "hf:someone/squad/converted", "train")) == SQUAD_RECORDS
    assert asked == [("someone/squad", {"repo_type": "dataset", "allow_patterns": "converted/*"})]


def test_a_hub_out_of_reach_is_told():
    with pytest.raises(UserError, match="the hub gives no data set nobody/nothing"):
        load_qa("squad", "hf:nobody/nothing", "train")


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "json", "zip", "parquet"])
def test_rows_of_each_set(tmp_path, name, form):
    row, (context, question, answers) = ROWS[name]
    part = SETS[name].part or "test"
    path = tmp_path / "data" / f"{part}.{form}"
    path.parent.mkdir()
    if form == "parquet":
        parquet(path, [row])
    elif form == "jsonl":
        jsonl(path, [row])
        jsonl(tmp_path / "data" / "other_train.jsonl", [{"x": 1}])
    elif form == "json":
        path.write_text(json.dumps([row]))
    elif form == "jsonl.gz":
        path.write_bytes(gzip.compress(json.dumps(row).encode() + b"\n"))
    else:
        path = path.with_name("data.zip")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"data/{part}.jsonl", json.dumps(row) + "\n")
            archive.writestr("data/other_train.jsonl", '{"x": 1}')
    for place in (str(tmp_path), str(path)):
        (record,) = load_qa(name, place, "test")
        assert (record.context, record.source, record.split) == (context, name, "test")
        assert record.queries == (Query(question, answers),)


def test_tensorflow_datasets_without_tensorflow(tmp_path, monkeypatch):
    """Sets that the library's own builders prepared, from files in the authors' formats."""
    import sys

    import tensorflow_datasets as tfds
    from tensorflow_datasets.datasets.squad import squad_dataset_builder
    from tensorflow_datasets.text.drop import drop

    questions = [
        {key: row[key] for key in ("id", "question")}
        | {"answers": [{"text": text, "answer_start": 0} for text in row["answers"]["text"]]}
        for row in (SQUAD[0], SQUAD[2])
    ]
    paragraph = {"context": RIVER, "qas": questions}
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"title": "R", "paragraphs": [paragraph]}]}))
    pairs = [{"query_id": "d", "question": "How many?", "answer": {"number": "7", "spans": []},
              "validated_answers": [{"number": "", "spans": ["seven points"]}]}]  # fmt: skip
    (tmp_path / "drop.json").write_text(json.dumps({"nfl_1": {"passage": "They scored 3 and 4.", "qa_pairs": pairs}}))
    tfds.disable_progress_bar()
    for builder, split, file in ((squad_dataset_builder.Builder, "train", "squad"), (drop.Drop, "dev", "drop")):
        monkeypatch.setattr(
            builder,
            "_split_generators",
            lambda self, manager, split=split, file=file: {
                split: self._generate_examples(tfds.core.Path(tmp_path / f"{file}.json"))
            },
        )
        options = {"config": "v1.1"} if file == "squad" else {}
        builder(data_dir=tmp_path, file_format="array_record", **options).download_and_prepare()
    (folder,) = tmp_path.glob("squad/v1.1/*.*.*")
    (record,) = load_qa("squad", str(folder), "train")
    # tensorflow-datasets shuffles while it prepares.
    assert record.context == RIVER and set(record.queries) == set(SQUAD_RECORDS[0][1])
    (folder,) = tmp_path.glob("drop/*.*.*")
    (record,) = load_qa("drop", str(folder), "validation")
    assert content([record]) == [("They scored 3 and 4.", (Query("How many?", ("7", "seven points")),))]
    with pytest.raises(UserError, match="cannot give test of .*drop"):
        load_qa("drop", str(folder), "test")
    with pytest.raises(UserError, match="cannot give train of no_such_set"):
        load_qa("squad", "tfds:no_such_set", "train")
    assert "tensorflow" not in sys.modules


def test_hidden_answers_are_left_out_and_counted(tmp_path, caplog):
    row = ROWS["ropes"][0]
    path = jsonl(tmp_path / "test.jsonl", [row, row | {"id": "r2", "question": "And?", "answers": {"text": []}}])
    (record,) = load_qa("ropes", str(path), "test")
    assert len(record.queries) == 1
    assert "1 questions have no answers" in caplog.text and caplog.records[0].levelno == logging.WARNING
    jsonl(path, [row | {"answers": {"text": []}}])
    with pytest.raises(UserError, match=r"no questions with answers for ropes \(test\)"):
        load_qa("ropes", str(path), "test")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no questions with answers"),
        ('{"context": "c", "question": "q", "answer": "a"}\n\n{"context": \n', "line 3 is no JSON"),
        (b'{"context": "\xff"}', "line 1 is not UTF-8"),
        (
            '{"context": "c", "question": "q"}',
            "line 1 has no readable 'answer': rows of this set hold context,",
        ),
        ('{"context": "c", "question": 7, "answer": "a"}', "line 1 has 7 for text"),
        ('{"context": " ", "question": "q", "answer": "a"}', "line 1 has an empty context"),
        ("[1, 2]", r"line 1 is \[1, 2\]: give one object a row"),
        ('{"context": "c", "question": "q", "answer": "a", "id": "x"}\n' * 2, "line 2: the id 'x' stands in .*line 1"),
    ],
)
def test_malformed_rows_are_told_with_their_line(tmp_path, text, why):
    path = tmp_path / "set.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=why) as error:
        load_qa("plain", str(path), "test")
    assert str(path) in str(error.value)


def test_places_and_names_that_do_not_exist(tmp_path):
    with pytest.raises(UserError, match="no data set 'squat': give one of squad, drop, ropes, pwc"):
        load_qa("squat", str(tmp_path), "test")
    with pytest.raises(UserError, match="no split 'eval': give one of train, validation, test"):
        load_qa("squad", str(tmp_path), "eval")
    with pytest.raises(UserError, match="there is no .*nowhere"):
        load_qa("squad", str(tmp_path / "nowhere"), "test")
    with pytest.raises(UserError, match="holds no parquet, JSONL or JSON file"):
        load_qa("squad", str(tmp_path), "test")
    jsonl(tmp_path / "hotpotqa_e.jsonl", [{}])
    with pytest.raises(UserError, match="holds no file of 2wikimqa_e"):
        load_qa("2wikimqa_e", str(tmp_path), "test")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="a.parquet is damaged"):
        load_qa("squad", str(tmp_path / "a.parquet"), "test")
    with pytest.raises(UserError, match="a.csv is none of parquet"):
        (tmp_path / "a.csv").write_text("a,b")
        load_qa("squad", str(tmp_path / "a.csv"), "test")


def test_contexts_in_training_and_test_are_found():
    def record(split, number, context):
        return Record(str(number), context, (), "plain", split)

    train = [record("train", i, text) for i, text in enumerate(["The Rhône, in Lyon.", "Geneva lies on a lake.", "x"])]
    test = [record("test", i, text) for i, text in enumerate(["the  rhône in LYON", "Lyon in the Rhône", "y", "X!"])]
    assert [r.id for r in overlap(train, test)] == ["0", "3"]
    with pytest.raises(UserError, match=r"2 test context\(s\) .*, plain \(test\) 0, plain \(test\) 3: take"):
        check_overlap(train, test)
    check_overlap(train, test[1:3])
