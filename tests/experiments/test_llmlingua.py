"""LLMLingua-2 through its own package, with a token classifier of random weights."""

import pytest

import d2l
from d2l.errors import UserError
from d2l.experiments.baselines.face import NotRun
from d2l.experiments.baselines.methods import make_method

QUESTION = "What is the special magic number?"
DOCUMENT = "The grass is green. The sky is blue. The special magic number is 0042. Here we go. There and back again."


@pytest.fixture(scope="module")
def model(target_folder):
    return d2l.load(target_folder)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A BERT of two layers that says of every token whether to keep it."""
    pytest.importorskip("llmlingua")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert") / "bert-multilingual-tiny"
    folder.mkdir()
    words = sorted(set(DOCUMENT.lower().replace(".", " .").split()))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words) + 205, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertForTokenClassification(config).save_pretrained(folder)
    return folder


def test_the_prompt_holds_a_part_of_the_document(model, classifier):
    method = make_method(model, "llmlingua2", 4, {"weights": str(classifier), "rate": 0.5})
    whole = make_method(model, "in_context", 4, {}).answer([DOCUMENT], [QUESTION])[0]
    part = method.answer([DOCUMENT], [QUESTION])[0]
    none = make_method(model, "no_context", 4, {}).answer([DOCUMENT], [QUESTION])[0]
    assert none.prompt_tokens < part.prompt_tokens < whole.prompt_tokens
    assert part.update.seconds > 0 and part.kv_bytes < whole.kv_bytes


def test_without_package_or_weights_it_is_not_run(model, tmp_path):
    with pytest.raises(NotRun, match="the package llmlingua|cannot be had"):
        make_method(model, "llmlingua2", 4, {"weights": str(tmp_path / "nothing")})
    with pytest.raises(UserError, match="rate is 2"):
        make_method(model, "llmlingua2", 4, {"rate": 2})
