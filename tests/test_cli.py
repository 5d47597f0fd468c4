"""The command: what it prints, and that bad input is one sentence and exit code 2."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2l import cli
from d2l.hypernet.hypernet import init_hypernet
from d2l.hypernet.store import load_hypernet, save_hypernet
from d2l.target.weights import load_target
from tests.conftest import hypernet_config


@pytest.fixture(scope="module")
def hypernet(target_folder, tmp_path_factory):
    target = load_target(target_folder)
    config = hypernet_config(target.config)
    folder = tmp_path_factory.mktemp("hyper") / "h"
    about = {"target_name": target.name, "target_hash": target.weights_hash, "card": {"max_chunk_len": 100}}
    save_hypernet(folder, config, init_hypernet(config, 0), **about)
    return folder


@pytest.fixture
def options(target_folder, hypernet):
    return ["--target", str(target_folder), "--hypernet", str(hypernet), "--dtype", "float32"]


def fails(capsys, *argv, code=2):
    """Run a command that must fail; returns its one sentence."""
    assert cli.main([str(a) for a in argv]) == code
    out, err = capsys.readouterr()
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("d2l") and "Traceback" not in err and not out
    return err


def test_internalize_ask_and_chat(options, tmp_path, capsys, monkeypatch):
    document = tmp_path / "doc.txt"
    document.write_text("The special magic number is 0042. The sky is blue. " * 20)
    target = options[:2] + options[4:]
    assert cli.main(["internalize", str(document), str(document), "--out", str(tmp_path / "a"), *options]) == 0
    assert "2 document(s)" in capsys.readouterr().out
    ask = ["ask", "What is the sky?", "--adapter", str(tmp_path / "a"), "--max-new-tokens", "4", *target]
    assert "2 contexts" in fails(capsys, *ask)
    assert cli.main([*ask, "--context", "1"]) == 0
    answer = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("What is the sky?\n\n"))
    chat = ["chat", "--adapter", str(tmp_path / "a"), "--context", "1", "--max-new-tokens", "4", *target]
    assert cli.main(chat) == 0
    assert capsys.readouterr().out.strip() == answer.strip()


def test_demo(options, tmp_path, capsys):
    argv = ["demo", "--tokens", "90", "--max-new-tokens", "3", *options]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    for word in ("D2L", "in context", "no context", "KV cache", "adapter", "The special magic number is"):
        assert word in out
    document = tmp_path / "doc.txt"
    document.write_text("The sky is blue. " * 200)
    own = ["demo", "--document", str(document), "--question", "What is the sky?", "--max-new-tokens", "3", *options]
    assert cli.main(own) == 0
    assert "does not fit the window" in capsys.readouterr().out
    assert "go together" in fails(capsys, "demo", "--document", document)


def test_eval_prints_rows(options, capsys):
    argv = ["eval", "--tasks", "niah", "--methods", "d2l,in_context,no_context", "--lengths", "32-64,70-99"]
    assert cli.main([*argv, "--samples", "3", "--seed", "1", "--json", *options]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["method"], row["length"]) for row in rows] == [
        (method, length) for length in ("32-64", "70-99") for method in ("d2l", "in_context", "no_context")
    ]
    for row in rows:
        assert row["task"] == "niah" and row["n"] == 3
        assert 0 <= row["low"] <= row["exact_match"] <= row["high"] <= 1
    assert cli.main([*argv, "--samples", "2", *options]) == 0
    assert "exact match" in capsys.readouterr().out


def test_niah_writes_a_data_set(target_folder, tmp_path, capsys):
    path = tmp_path / "n.jsonl"
    argv = ["niah", "--target", str(target_folder), "--out", str(path), "--samples", "4", "--lengths", "32-64"]
    assert cli.main(argv) == 0
    assert len(path.read_text().splitlines()) == 4


def test_documents_that_cannot_be_read(options, tmp_path, capsys):
    path, out = tmp_path / "doc.txt", tmp_path / "a"

    def sentence():
        return fails(capsys, "internalize", path, "--out", out, *options)

    assert "cannot be read" in sentence()
    path.write_text(" \n\t ")
    assert "is empty" in sentence()
    path.write_bytes(b"text\0binary")
    assert "is binary" in sentence()
    path.write_bytes("naïve".encode("latin-1"))
    assert "not UTF-8 (byte 2)" in sentence()
    path.unlink()
    path.mkdir()
    assert "cannot be read" in sentence()
    assert not out.exists()


def test_models_and_adapters_that_cannot_be_used(options, target_folder, tmp_path, capsys):
    document = tmp_path / "doc.txt"
    document.write_text("The sky is blue.")
    make = ["internalize", document, "--out", tmp_path / "a"]
    assert "there is no model" in fails(capsys, *make, "--target", "nothing", "--hypernet", options[3])
    assert "holds no hypernetwork" in fails(capsys, *make, "--target", target_folder, "--hypernet", tmp_path)
    assert "trained for tiny" in fails(capsys, *make, "--hypernet", options[3])
    assert "holds no adapter" in fails(capsys, "ask", "What?", "--adapter", tmp_path / "none")
    assert "window" in fails(capsys, *make, "--max-chunk-len", "9999", *options)
    assert "window" in fails(capsys, "ask", "sky " * 900, "--target", target_folder, "--max-new-tokens", "1")
    assert "top_p" in fails(capsys, "ask", "sky", "--target", target_folder, "--top-p", "2")


def test_arguments_that_do_not_exist(options, tmp_path, capsys):
    assert "no task 'squad'" in fails(capsys, "eval", "--tasks", "squad")
    assert "no method 'rag'" in fails(capsys, "eval", "--methods", "d2l,rag")
    for lengths in ("32", "a-b", "64-32", "32-64,", ""):
        assert "is no range: give two whole numbers" in fails(capsys, "eval", "--lengths", lengths)
    assert "samples is 0" in fails(capsys, "eval", "--samples", "0", *options)
    assert "unknown argument" in fails(capsys, "eval", "--nonsense")
    with pytest.raises(SystemExit) as stop:
        cli.main(["nonsense"])
    assert stop.value.code == 2


def test_configs_that_cannot_be_used(tmp_path, capsys):
    work = ["--workdir", tmp_path / "w"]
    real = ["train", "--config", "configs/niah_tiny.py", *work]
    assert "there is no config" in fails(capsys, "train", "--config", tmp_path / "no.py", *work)
    assert "has no field" in fails(capsys, *real, "--config.nope=1")
    assert "has no field" in fails(capsys, *real, "--config.hypernet.nope=1")
    assert "cannot be used" in fails(capsys, *real, "--config.lr=abc")
    assert "cannot be used" in fails(capsys, *real, "--other=1")
    assert not (tmp_path / "w").exists()
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(:\n")
    assert "broken.py" in fails(capsys, "train", "--config", broken, *work)


def test_average(target_folder, hypernet, tmp_path, capsys):
    target = load_target(target_folder)
    config, _, description = load_hypernet(hypernet)
    about = {"target_name": target.name, "target_hash": target.weights_hash, "card": {"max_chunk_len": 50}}
    save_hypernet(tmp_path / "later", config, init_hypernet(config, 1), **about)
    out = tmp_path / "mean"
    assert cli.main(["average", str(hypernet), str(tmp_path / "later"), "--out", str(out)]) == 0
    assert "mean of 2 hypernetworks written" in capsys.readouterr().out
    folders = (hypernet, tmp_path / "later", out)
    (_, first, _), (_, second, _), (same, mean, described) = map(load_hypernet, folders)
    assert same == config and described["target"] == description["target"]
    assert described["card"] == {"max_chunk_len": 50, "mean_of": [str(hypernet), str(tmp_path / "later")]}
    half = jax.tree.map(lambda a, b: ((a + b) / 2).astype(jnp.bfloat16).astype(jnp.float32), first, second)
    jax.tree.map(np.testing.assert_array_equal, mean, half)

    narrow = dataclasses.replace(config, rank=config.rank + 1)
    save_hypernet(tmp_path / "narrow", narrow, init_hypernet(narrow, 1), **about)
    untouched = tmp_path / "untouched"
    assert "differ in config" in fails(capsys, "average", tmp_path / "narrow", hypernet, "--out", untouched)
    assert "have no mean" in fails(capsys, "average", hypernet, "--out", untouched)
    assert "holds no hypernetwork" in fails(capsys, "average", hypernet, tmp_path / "none", "--out", untouched)
    assert not untouched.exists()


def test_import_checkpoint(tmp_path, capsys):
    folder = "tests/fixtures/llama_per_layer"
    argv = ["import-checkpoint", f"{folder}/pytorch_model.bin", "--base", f"{folder}/base"]
    assert cli.main([*argv, "--out", str(tmp_path / "h")]) == 0
    assert (tmp_path / "h" / "hypernet.safetensors").exists()
    capsys.readouterr()
    assert "cannot read" in fails(capsys, argv[0], tmp_path / "no.bin", *argv[2:], "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()
