"""An evaluation end to end on a small random target: items, resume, report, comparison, and what is refused."""

import ast
import json
import pathlib
import shutil

import pytest

from d2l import cli
from d2l.cli_config import read_config
from d2l.errors import UserError
from d2l.experiments.evaluate import check_config, evaluate
from d2l.experiments.suites import SUITES, make_cases
from d2l.hypernet.hypernet import init_hypernet
from d2l.hypernet.store import save_hypernet
from d2l.target.weights import load_target
from tests.conftest import hypernet_config
from tests.test_cli import fails

DATA = {"data": "needles", "documents": 2, "tokens": (40, 60)}


@pytest.fixture(scope="module")
def fields(target_folder, tmp_path_factory):
    target = load_target(target_folder)
    config = hypernet_config(target.config)
    folder = tmp_path_factory.mktemp("hyper") / "h"
    about = {"target_name": target.name, "target_hash": target.weights_hash, "card": {"max_chunk_len": 100}}
    save_hypernet(folder, config, init_hypernet(config, 0), **about)
    return {
        "target": str(target_folder),
        "hypernet": str(folder),
        "max_new_tokens": 4,
        "methods": {"in_context": {}, "no_context": {}, "d2l": {}, "text_to_lora": {}},
        "suites": {
            "needles": {"lengths": ((40, 60),), "depths": 2, "samples": 1},
            "scale": {"scales": (0.0, 1.0)} | DATA,
        },
    }


@pytest.fixture(scope="module")
def run(fields, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval") / "run"
    evaluate(fields, folder)
    return folder


def items(folder):
    """All rows of a run without what was measured."""
    found = {}
    for path in sorted((folder / "items").rglob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[str(path.relative_to(folder))] = [{k: v for k, v in row.items() if k != "measured"} for row in rows]
    return found


def test_items_and_their_scores(run):
    found = items(run)
    assert {name: len(rows) for name, rows in found.items()} == {
        "items/needles/d2l.jsonl": 2,
        "items/needles/in_context.jsonl": 2,
        "items/needles/no_context.jsonl": 2,
        "items/scale/d2l.jsonl": 4,
        "items/scale/in_context.jsonl": 2,
        "items/scale/no_context.jsonl": 2,
    }
    assert all(row["scores"]["kl"] == 0 for row in found["items/needles/in_context.jsonl"])
    assert all(row["scores"]["kl"] > 1e-4 for row in found["items/needles/no_context.jsonl"])
    # An adapter of strength 0 is no context.
    none = {row["question"]: row for row in found["items/scale/no_context.jsonl"]}
    for row in found["items/scale/d2l.jsonl"]:
        if row["scale"] == 0:
            assert row["answer"] == none[row["question"]]["answer"]
    assert {row["depth"] for row in found["items/needles/d2l.jsonl"]} == {0.0, 1.0}


def test_a_killed_evaluation_goes_on_to_the_same_files(run, fields, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(run, again)
    for number, path in enumerate(sorted((again / "items").rglob("*.jsonl"))):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * number // 6 + 3])  # in the middle of a line, or of a case
    whole = (again / "items" / "scale" / "no_context.jsonl").read_bytes().splitlines(keepends=True)[0]
    evaluate(fields, again)
    assert items(again) == items(run)
    # What was measured stays from the first time.
    assert (again / "items" / "scale" / "no_context.jsonl").read_bytes().startswith(whole)


def test_report(run):
    text, page = (run / "report.md").read_text(), (run / "report.html").read_text()
    for word in ("Suite needles", "Suite scale", "ratio to in context", "peak memory while updating", "d2l x 0"):
        assert word in text and word in page
    assert "text_to_lora" in text and "not run" in text
    assert "| d2l | 2 |" in text


def test_compare(run, capsys):
    assert cli.main(["compare", str(run), str(run)]) == 0
    out = capsys.readouterr().out
    assert "0.000 (0.000 - 0.000)" in out and "Suite needles" in out
    assert "holds no evaluation" in fails(capsys, "compare", run, run.parent)


def test_a_workdir_of_other_weights_is_refused(run, fields, tmp_path):
    """The config names the same folder, in which others have come to be."""
    again, before = tmp_path / "run", tmp_path / "before"
    shutil.copytree(run, again)
    folder = pathlib.Path(fields["hypernet"])
    shutil.copytree(folder, before)
    described = json.loads((folder / "hypernet.json").read_text())
    config = hypernet_config(load_target(fields["target"]).config)
    about = {"target_name": "t", "target_hash": described["target"]["weights_hash"], "card": described["card"]}
    try:
        save_hypernet(folder, config, init_hypernet(config, 1), **about)
        with pytest.raises(UserError, match="other weights of the hypernet: choose another --workdir"):
            evaluate(fields, again)
    finally:
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
    assert items(again) == items(run)
    evaluate(fields, again)


def test_a_workdir_of_another_config_is_refused(run, fields):
    with pytest.raises(UserError, match="another config .*max_new_tokens"):
        evaluate(fields | {"max_new_tokens": 5}, run)


def test_suites_hold_what_they_say(tokenizer):
    cases = {name: make_cases(name, DATA, tokenizer) for name in ("records", "interference", "swapped", "scale")}
    pages = [case.documents[0] for case in cases["records"]]
    asked = [case.queries for case in cases["records"]]
    assert [case.documents[0] for case in cases["interference"]] == pages[::-1]
    assert [case.queries for case in cases["interference"]] == asked
    for case, page, queries in zip(cases["swapped"], pages, asked, strict=True):
        assert case.documents == (queries[0].question,) and case.queries[0].question == page
        assert case.queries[0].answers == queries[0].answers
    assert [case.scale for case in cases["scale"]] == [1.0, 0.0, 0.5, 1.5, 2.0] * 2
    for i, case in enumerate(make_cases("several", {**DATA, "documents": 4}, tokenizer)):
        assert len(set(case.documents)) == 3
        assert case.queries[0].answers[0] in case.documents[i % 3]


@pytest.mark.parametrize("path", sorted(pathlib.Path("configs").glob("eval_*.py")), ids=lambda path: path.stem)
def test_configs_can_be_used_and_say_how(path):
    assert check_config(read_config(str(path), []).to_dict())["kind"] == "eval"
    assert f"d2l eval --config {path} --workdir runs/{path.stem}" in ast.get_docstring(ast.parse(path.read_text()))


def test_no_documents_asked_for_are_all_of_a_file(tokenizer, tmp_path):
    query = {"question": "What is it?", "answers": ["a text"], "kind": ""}
    record = {"context": "This is a text.", "queries": [query], "source": "made", "split": "test"}
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(record | {"id": str(i)}) + "\n" for i in range(3)))
    assert len(make_cases("records", {"data": "records", "documents": 0, "path": str(path)}, tokenizer)) == 3


def test_replies_may_be_begun(fields, tokenizer, tmp_path):
    query = {"question": "What is it?", "answers": ["a text"], "kind": ""}
    record = {"id": "0", "context": "This is a text.", "source": "made", "split": "test"}
    path, rows = tmp_path / "all.jsonl", {}
    for start in ("", "It is"):
        path.write_text(json.dumps(record | {"queries": [query | {"start": start}]}))
        suites = {"one": {"kind": "records", "data": "records", "documents": 0, "path": str(path)}}
        evaluate(fields | {"suites": suites}, tmp_path / f"run{start}")
        rows[start] = items(tmp_path / f"run{start}")
    for name, (row,) in rows["It is"].items():
        (plain,) = rows[""][name]
        assert (plain["start"], row["start"]) == ("", "It is")
        assert row["prompt_tokens"] == plain["prompt_tokens"] + len(tokenizer.encode("It is"))
        assert (row["scores"]["kl"] == 0) == name.endswith("in_context.jsonl")
        assert row["scores"]["kl"] != plain["scores"]["kl"] or row["scores"]["kl"] == 0


def test_what_does_not_exist_is_named_with_what_does(fields, tokenizer, capsys, tmp_path):
    def refused(**changes):
        with pytest.raises(UserError) as caught:
            check_config(fields | changes)
        return str(caught.value)

    assert "no metric 'bleu'" in refused(metrics=("bleu",)) and "rouge_l, kl" in refused(metrics=("bleu",))
    assert "no method 'rag': give some of in_context" in refused(methods={"rag": {}})
    assert "no option 'lr2': give some of rank" in refused(methods={"cd_oracle": {"lr2": 1}})
    assert "no option 'depth': it has none" in refused(methods={"no_context": {"depth": 1}})
    assert "needs the method in_context" in refused(methods={"d2l": {}})
    assert "no suite 'squad2': give some of records" in refused(suites={"squad2": {}})
    assert "no data 'quad': give one of needles" in refused(suites={"records": DATA | {"data": "quad"}})
    assert "kind 'target'" in refused(kind="target")
    assert "no suites" in refused(suites={})
    assert "no field 'metric'" in refused(metric=1)
    for name, options, words in (
        ("records", {}, "has no data"),
        ("needles", {"length": 1}, "no option 'length'"),
        ("records", DATA | {"place": "x"}, "no option 'place'"),
        ("records", DATA | {"documents": 0}, "the data needles have no end"),
        ("interference", DATA | {"documents": 1}, "needs 2 documents"),
        ("contradiction", DATA, "2 documents were asked for, the data needles have 0 that fit"),
        ("contradiction", {"data": "records", "documents": 1, "path": str(tmp_path / "no.jsonl")}, "cannot read"),
    ):
        with pytest.raises(UserError, match=words):
            make_cases(name, options, tokenizer)
    assert set(SUITES) >= {"records", "needles", "contradiction", "interference", "several", "swapped", "scale"}
    assert "--config goes with --workdir" in fails(capsys, "eval", "--config", "configs/eval_niah.py")
    assert "--workdir goes with --config" in fails(capsys, "eval", "--workdir", tmp_path)
