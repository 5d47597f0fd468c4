"""`d2l data`: every kind writes records that read back; bad input is one sentence and exit code 2."""

import json

import pytest

from d2l import cli
from d2l.data.jsonl import read_records
from d2l.data.shards import Shards

TEXT = "The sky is blue. The sun is yellow. The grass is green.\n\nHere we go over the hill. There and back again."


@pytest.fixture
def data(tmp_path, capsys, target_folder):
    """Run `d2l data ARGV --out ...`; gives the records, or the sentence of an error."""

    def run(kind, *argv, out="out.jsonl", target=True):
        place = tmp_path / out
        argv = ["data", kind, *map(str, argv), "--out", str(place), *(["--target", str(target_folder)] * target)]
        code = cli.main(argv)
        printed = capsys.readouterr()
        if code:
            assert code == 2 and printed.err.startswith("d2l: ") and len(printed.err.splitlines()) == 1, printed.err
            return printed.err
        records = list(read_records(place)) if out.endswith("jsonl") else list(map(Shards(place).__getitem__, range(9)))
        assert printed.out == f"{place}: {len(records)} records\n"
        return records

    return run


def test_documents(data, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text(TEXT)
    (tmp_path / "docs" / "b.html").write_text("<p>Only a paragraph.</p>")
    first, second = data("documents", tmp_path / "docs")
    assert (first.context, first.source, first.split, first.queries) == (TEXT, "documents", "train", ())
    assert second.context == "Only a paragraph." and second.id.endswith("b.html")
    passages = data("documents", tmp_path / "docs", "--max-tokens", 16, "--min-tokens", 4, "--split", "test")
    assert len(passages) > 3 and {record.split for record in passages} == {"test"}
    assert passages[0].id.endswith("a.txt#0") and passages[0].context.startswith("The sky")
    assert "there is no file or folder" in data("documents", tmp_path / "nothing")


def test_corpus(data):
    records = data("corpus", "--kinds", "python", "--limit", 12, "--max-tokens", 200)
    assert records and all(record.source == "python" and record.split == "train" for record in records)
    assert "no kind of documents 'web'" in data("corpus", "--kinds", "web")


def test_biographies_in_both_forms(data):
    argv = ["--samples", 9, "--lengths", "200-900", "--split", "test", "--seed", 3]
    records = data("biographies", *argv)
    assert len(records) == 9 and all(record.queries for record in records)
    assert data("biographies", *argv, out="folder") == records
    assert "is no range: give two whole numbers" in data("biographies", "--lengths", "x")
    few = data("biographies", *argv, "--queries", 2, "--closed-qa", 1)
    assert [r.context for r in few] == [r.context for r in records]
    for asked, whole in zip(few, records, strict=True):
        assert [q.answers for q in asked.queries] == [q.answers for q in whole.queries[:2]]
        for query, plain in zip(asked.queries, whole.queries, strict=False):
            assert query.question.split("\n")[0] == plain.question and len(query.question.split("\n")) == 2
    some = data("biographies", *argv, "--kinds", "who,multi_hop")
    for asked, whole in zip(some, records, strict=True):
        assert asked.queries == tuple(q for q in whole.queries if q.kind in ("who", "multi_hop"))
    assert "--kinds has 'why'" in data("biographies", "--kinds", "who,why")
    assert "--queries is 0" in data("biographies", "--queries", 0)
    assert "closed_qa is 2.0" in data("biographies", "--closed-qa", 2)


def test_wikipedia_and_cloze(data, tmp_path):
    text = "The lake of [[Hollow]] was dug in 1204 by the monks of Saint Gall, who needed carps for days of fasting."
    page = f"<page><title>A</title><ns>0</ns><revision><text>{text}</text></revision></page>"
    (tmp_path / "dump.xml").write_text(f"<mediawiki>{page}</mediawiki>")
    (article,) = data("wikipedia", tmp_path / "dump.xml", "--max-tokens", 400, out="articles.jsonl")
    assert article.id == "A#0" and "lake of Hollow was" in article.context
    options = ["--queries", 2, "--closed-qa", 1, "--answers", "spaced"]
    (asked,) = data("cloze", tmp_path / "articles.jsonl", *options, out="cloze.jsonl", target=False)
    assert asked.context == article.context and len(asked.queries) == 2
    for query in asked.queries:
        assert query.answers[0][0] == " " and query.answers[0] in text.replace("[", "") and "\n" in query.question
    (plain,) = data("cloze", tmp_path / "articles.jsonl", "--plain", out="plain.jsonl", target=False)
    assert not any("____" in query.question for query in plain.queries)
    (open_ones,) = data("questions", tmp_path / "articles.jsonl", "--closed-qa", 1, out="open.jsonl", target=False)
    assert 1 <= len(open_ones.queries) <= 3 and not any(query.answers for query in open_ones.queries)
    assert "--queries is 0" in data("questions", tmp_path / "articles.jsonl", "--queries", 0, target=False)
    assert "answers are 'loud'" in data("cloze", tmp_path / "articles.jsonl", "--answers", "loud", target=False)
    assert "--queries is 0" in data("cloze", tmp_path / "articles.jsonl", "--queries", 0, target=False)
    assert "cannot be read" in data("wikipedia", tmp_path / "nothing.xml")


def test_unrelated(data):
    argv = ["--samples", 7, "--lengths", "200-900", "--split", "test", "--queries", 3]
    records = data("unrelated", *argv)
    assert len(records) == 7 and {len(record.queries) for record in records} == {3}
    assert "told as value or spaced" in data("unrelated", *argv, "--answers", "sentence")


def test_published_sets_and_overlap(data, tmp_path, capsys):
    row = {"context": TEXT, "question": "What is blue?", "answers": ["the sky"]}
    (tmp_path / "set.jsonl").write_text(json.dumps(row))
    (record,) = data("qa", "plain", "--place", tmp_path / "set.jsonl", out="train.jsonl", target=False)
    assert record.context == TEXT and record.queries[0].answers == ("the sky",)
    data("qa", "plain", "--place", tmp_path / "set.jsonl", "--split", "test", out="same.jsonl", target=False)
    (tmp_path / "set.jsonl").write_text(json.dumps(row | {"context": "Another text."}))
    data("qa", "plain", "--place", tmp_path / "set.jsonl", "--split", "test", out="test.jsonl", target=False)
    train, same, test = (str(tmp_path / f"{name}.jsonl") for name in ("train", "same", "test"))
    assert cli.main(["data", "overlap", train, test]) == 0
    assert capsys.readouterr().out == "none of 1 test contexts is among 1 of training\n"
    assert cli.main(["data", "overlap", train, test, same]) == 2
    assert "1 test context(s) are trained on" in capsys.readouterr().err
    assert "no data set 'squat'" in data("qa", "squat", "--place", tmp_path, target=False)


def test_made_tasks(data, tmp_path):
    (tmp_path / "code").mkdir()
    body = '    """Give back what was given, but twice as long."""\n    a = x\n    b = x\n    c = a + b\n    return c\n'
    (tmp_path / "code" / "m.py").write_text("".join(f"def double_{i}(x):\n{body}\n\n" for i in range(5)))
    records = data("repoqa", "--place", tmp_path / "code", "--samples", 3, "--tokens", 150)
    assert len(records) == 3 and all(record.queries[0].answers[0] in record.context for record in records)
    assert "cannot read" in data("repoqa", "--place", tmp_path / "none.json")
    (tmp_path / "a.txt").write_text(TEXT)
    stories = data("babilong", tmp_path / "a.txt", "--samples", 2, "--lengths", "300-500", "--tasks", "qa1,qa3")
    assert [record.queries[0].kind for record in stories] == ["qa1", "qa1", "qa3", "qa3"]
    assert "no task 'qa9'" in data("babilong", tmp_path / "a.txt", "--tasks", "qa9")
