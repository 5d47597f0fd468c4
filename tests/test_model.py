"""`DocToLora`: several documents equal one at a time, streams equal the plain computation, misuse is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import d2l
from d2l.adapter import compose, loudness
from d2l.errors import UserError
from d2l.hypernet.chunk import split_sentences, split_tokens
from d2l.hypernet.features import read_context
from d2l.hypernet.hypernet import abstract_hypernet, init_hypernet
from d2l.hypernet.store import save_hypernet
from d2l.target.decoder import abstract_decoder
from d2l.target.weights import load_target, save_target
from tests.conftest import hypernet_config

TEXTS = [
    "The special magic number is 0042.",
    "The grass is green. The sky is blue. " * 9,
    "Here we go. There and back again. The sun is yellow. " * 3,
]


@pytest.fixture(scope="module", params=["early_exit", "per_layer_activations"])
def model(request, target_folder, tmp_path_factory):
    return d2l.load(target_folder, _save(target_folder, tmp_path_factory.mktemp("hyper"), features=request.param))


def _save(target_folder, folder, modules=("down_proj", "q_proj"), **changes):
    target = load_target(target_folder)
    hyper = hypernet_config(target.config, modules, **changes)
    params = init_hypernet(hyper, 0)
    card = {"max_chunk_len": 24}
    hashes = {"target_name": target.name, "target_hash": target.weights_hash}
    save_hypernet(folder / "h", hyper, params, **hashes, card=card)
    return folder / "h"


def close(a, b):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-5)


def test_stream_of_chunks_with_copies_equals_the_plain_computation(target_folder, tmp_path, monkeypatch):
    folder = _save(target_folder, tmp_path, ("down_proj", "o_proj"), copy_size=8)
    test_stream_of_chunks_equals_the_plain_computation(d2l.load(target_folder, folder), target_folder, monkeypatch)


def test_stream_of_chunks_equals_the_plain_computation(model, target_folder, monkeypatch):
    monkeypatch.setattr("d2l.hypernet.reader.TOKENS_PER_CALL", 70)  # about two chunks a call
    adapter = model.internalize(TEXTS)
    config, target = model.hypernet.config, load_target(target_folder)
    prefix, suffix = model.tokenizer.turn_wrapper
    chunks = [[[*prefix, *part, *suffix] for part in split_tokens(model.tokenizer.encode(t), 24)] for t in TEXTS]
    rows = [(c, s, ids) for c, parts in enumerate(chunks) for s, ids in enumerate(parts)]
    width = max(len(ids) for *_, ids in rows)
    tokens = jnp.array([ids + [0] * (width - len(ids)) for *_, ids in rows], jnp.int32)
    mask = jnp.array([[1] * len(ids) + [0] * (width - len(ids)) for *_, ids in rows], bool)
    decoder = nnx.merge(abstract_decoder(target.config)[0], target.params)
    hypernet = nnx.merge(abstract_hypernet(config)[0], model.hypernet.params)
    features, sources = read_context(decoder, config, tokens)
    factors, ranks = compose(
        hypernet(features, mask, sources=sources),
        jnp.array([c for c, *_ in rows]),
        jnp.array([s for _, s, _ in rows]),
        num_contexts=3,
        max_chunks=max(map(len, chunks)),
        bias=hypernet.bias(),
    )
    jax.tree.map(close, factors, adapter.factors)
    np.testing.assert_array_equal(ranks, adapter.ranks)
    assert max(map(len, chunks)) > 2 and min(map(len, chunks)) == 1


def test_the_loudest_chunks_make_the_adapter(model, monkeypatch):
    monkeypatch.setattr("d2l.hypernet.reader.TOKENS_PER_CALL", 70)
    r = model.hypernet.config.rank
    whole = model.internalize(TEXTS, chunk_overlap=5)
    kept = model.internalize(TEXTS, chunk_overlap=5, keep_chunks=2)
    assert kept.nbytes < whole.nbytes and max(whole.ranks) > 3 * r
    for context, (rows, most) in enumerate(zip(map(int, kept.ranks), map(int, whole.ranks), strict=True)):
        assert rows == min(most, 3 * r)
        parts = most // r - 1
        each = {
            name: {
                key: a[:, context, :most].reshape(a.shape[0], parts + 1, r, -1).swapaxes(0, 1) for key, a in ab.items()
            }
            for name, ab in whole.factors.items()
        }
        loudest = np.argsort(-loudness(jax.tree.map(lambda a, parts=parts: a[:parts], each)))[:2]
        for name, ab in kept.factors.items():
            for key, a in ab.items():
                same = [each[name][key][n] for n in (*loudest, parts)]
                close(a[:, context, :rows], jnp.concatenate(same, axis=1))


def test_documents_are_cut_where_sentences_end(model):
    text = "The sky is blue. The grass is green. Here we go. The sun is. The grass is blue. Here we go."
    whole = model.internalize(text, max_chunk_len=20, chunk_at="sentences")
    parts = split_sentences(*model.tokenizer.encode_sentences(text), 20)
    assert len(parts) > 1 and all(model.tokenizer.decode(part).endswith(".") for part in parts)
    r = model.hypernet.config.rank
    assert int(whole.ranks[0]) == (len(parts) + model.hypernet.config.use_bias) * r
    for place, part in enumerate(parts):
        alone = model.internalize(model.tokenizer.decode(part))
        for name, ab in alone.factors.items():
            for key, a in ab.items():
                close(a[:, 0, :r], whole.factors[name][key][:, 0, place * r : (place + 1) * r])
    with pytest.raises(UserError, match="chunk_overlap is 3 and chunk_at sentences"):
        model.internalize(text, chunk_overlap=3, chunk_at="sentences")
    with pytest.raises(UserError, match="chunk_at is 'words'"):
        model.internalize(text, chunk_at="words")


def test_many_documents_equal_one_at_a_time(model):
    together = model.internalize(TEXTS)
    for i, text in enumerate(TEXTS):
        alone = model.internalize(text)
        rank = int(alone.ranks[0])
        assert rank == int(together.ranks[i]) == alone.rank
        for name, ab in alone.factors.items():
            for key, a in ab.items():
                close(a[:, 0], together.factors[name][key][:, i, :rank])
                assert not np.any(together.factors[name][key][:, i, rank:])


def test_iterative_equals_batched(model):
    if not model.hypernet.config.per_layer:
        pytest.skip("iterative is about per-layer features")
    jax.tree.map(close, model.internalize(TEXTS).factors, model.internalize(TEXTS, iterative=True).factors)


def test_answers_depend_on_the_right_document(model):
    question = "What is the special magic number?"
    adapter = model.internalize(TEXTS).scaled(3.0)
    answers = model.generate([question] * 3, adapter, max_new_tokens=8)
    alone = [model.generate(question, model.internalize(t).scaled(3.0), max_new_tokens=8) for t in TEXTS]
    assert answers == alone
    assert answers[::-1] == model.generate([question] * 3, adapter, contexts=[2, 1, 0], max_new_tokens=8)
    ids = jnp.array([model.tokenizer.user_turn(question)] * 3, jnp.int32)
    rows = model.logits(ids, adapter)
    assert not np.allclose(rows[0], rows[1], atol=1e-4)
    close(rows[1], model.logits(ids[:1], adapter, contexts=[1])[0])
    close(model.logits(ids, adapter.scaled(0.0)), model.logits(ids))


def test_stream_equals_generate(model):
    adapter = model.internalize(TEXTS[0])
    question = "What is the special magic number?"
    text = "".join(model.stream(question, adapter, max_new_tokens=12))
    assert text.strip() == model.generate(question, adapter, max_new_tokens=12).strip()


def test_conversations_are_prompts(model):
    messages = [{"role": "user", "content": "What is the sky?"}]
    assert model.generate(messages, max_new_tokens=6) == model.generate("What is the sky?", max_new_tokens=6)
    assert model.generate([messages], max_new_tokens=6) == [model.generate(messages, max_new_tokens=6)]


def test_misuse_is_refused_with_a_sentence(model, target_folder):
    adapter = model.internalize(TEXTS)
    for text in ("", "  \n\t "):
        with pytest.raises(UserError, match="document 2 of 2 is empty"):
            model.internalize(["The sky is blue.", text])
        with pytest.raises(UserError, match="question is empty"):
            model.generate(text)
    with pytest.raises(UserError, match="no document"):
        model.internalize([])
    with pytest.raises(UserError, match="max_chunk_len is 0"):
        model.internalize("The sky", max_chunk_len=0)
    with pytest.raises(UserError, match="window of .* has room for"):
        model.internalize("The sky", max_chunk_len=1000)
    with pytest.raises(UserError, match="window of .* is 512"):
        model.generate("sky " * 600)
    with pytest.raises(UserError, match="3 contexts for 2 prompts"):
        model.generate(["a", "b"], adapter)
    for contexts in ([0], [0, 3], [-1, 0]):
        with pytest.raises(UserError, match="contexts is"):
            model.generate(["a", "b"], adapter, contexts=contexts)
    other = dataclasses.replace(adapter, target_hash="0" * 64, target_name="another")
    with pytest.raises(UserError, match="made for another"):
        model.generate(["a", "b", "c"], other)
    with pytest.raises(UserError, match="no hypernetwork"):
        d2l.load(target_folder).internalize("The sky")


def test_adapter_that_is_not_finite_is_refused(model):
    broken = jax.tree.map(lambda a: a, model.hypernet.params)
    broken["head"] = broken["head"] * jnp.inf
    hurt = d2l.DocToLora.__new__(d2l.DocToLora)
    hurt.__dict__.update(model.__dict__)
    hurt.__dict__.pop("_finish", None)
    hurt.hypernet = dataclasses.replace(model.hypernet, params=broken)
    with pytest.raises(UserError, match="NaN or infinity"):
        hurt.internalize("The sky is blue.")


def test_hypernetwork_of_another_target_is_refused(target_folder, tmp_path):
    target = load_target(target_folder)
    params = target.params | {"norm": target.params["norm"] + 1}
    save_target(tmp_path / "other", target.config, params, target.tokenizer)
    with pytest.raises(UserError, match="was trained for tiny"):
        d2l.load(tmp_path / "other", _save(target_folder, tmp_path))


def test_another_model_may_read_the_documents(target_folder, tmp_path):
    """The context encoder has half the width of the target and other weights."""
    from d2l.train.pretrain import init_target

    target = load_target(target_folder)
    small = dataclasses.replace(target.config, hidden_size=16, head_dim=4, query_pre_attn_scalar=4.0)
    save_target(tmp_path / "encoder", small, init_target(small, 5), target.tokenizer)
    folder = _save(target_folder, tmp_path, feature_size=16)
    model = d2l.load(target_folder, folder, ctx_encoder=tmp_path / "encoder")
    adapter = model.internalize(TEXTS)
    assert adapter.factors["down_proj"]["B"].shape[-1] == 32
    assert model.generate(["a", "b", "c"], adapter, max_new_tokens=2)
    with pytest.raises(UserError, match="hidden size 32"):
        d2l.load(target_folder, folder)


def test_a_reader_named_by_the_card_is_never_replaced_by_the_target(target_folder, tmp_path):
    folder = _save(target_folder, tmp_path)
    description = json.loads((folder / "hypernet.json").read_text())
    description["card"]["ctx_encoder"] = "org/reader"
    (folder / "hypernet.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="through org/reader"):
        d2l.load(target_folder, folder)
    assert d2l.load(target_folder, folder, ctx_encoder=target_folder).internalize("The sky is blue.")
