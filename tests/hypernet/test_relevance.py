"""How relevant a chunk is: its formula, chunks packed in a row, and which chunks of a document stay by it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import d2l
from d2l.errors import UserError
from d2l.hypernet.chunk import Chunking, split_tokens
from d2l.hypernet.features import context_features
from d2l.hypernet.hypernet import abstract_hypernet, init_hypernet
from d2l.hypernet.relevance import Relevance
from d2l.hypernet.store import save_hypernet
from d2l.model import DocToLora
from d2l.target.decoder import abstract_decoder
from d2l.target.weights import load_target
from tests.conftest import hypernet_config

TEXT = "The grass is green. The sky is blue. What is the special magic number? It is 4731. Here we go. There and back."
SIZE = 8


@pytest.fixture(scope="module")
def model(target_folder, tmp_path_factory):
    """Its direction is drawn, so that what is relevant here is so by chance."""
    target = load_target(target_folder)
    config = hypernet_config(target.config, relevance=True)
    params = init_hypernet(config, 0)
    weight = 0.2 * jax.random.normal(jax.random.key(2), (config.feature_size,))
    params = params | {"relevance": dict(params["relevance"]) | {"weight": weight}}
    folder = tmp_path_factory.mktemp("hyper") / "h"
    hashes = {"target_name": target.name, "target_hash": target.weights_hash}
    save_hypernet(folder, config, params, **hashes, card={"max_chunk_len": SIZE})
    return d2l.load(target_folder, folder)


def expected(model, ids):
    """log sum exp over the tokens of one chunk in its turn, by numpy."""
    prefix, suffix = model.tokenizer.turn_wrapper
    decoder = nnx.merge(abstract_decoder(model.target.config, stacked=False)[0], model.target.params)
    text = jnp.asarray([[*prefix, *ids, *suffix]], jnp.int32)
    features = np.asarray(context_features(decoder, model.hypernet.config, text)[0], np.float64)
    part = model.hypernet.params["relevance"]
    return np.log(np.exp(features @ np.asarray(part["weight"], np.float64)).sum()) + float(part["bias"])


def test_chunks_packed_in_a_row_are_told_one_by_one():
    features = jax.random.normal(jax.random.key(0), (2, 9, 6))
    relevance = Relevance(6)
    relevance.weight.set_value(jax.random.normal(jax.random.key(1), (6,)))
    segments = np.array([[0, 0, 0, 1, 1, -1, -1, -1, -1], [0, 1, 1, 1, 1, 1, 2, 2, 2]])
    mask = segments[:, None] == np.arange(3)[None, :, None]
    found = relevance(features, jnp.asarray(mask)).reshape(2, 3)
    for row, chunk in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]:
        logits = np.asarray(features, np.float64)[row, mask[row, chunk]] @ np.asarray(relevance.weight[...])
        np.testing.assert_allclose(found[row, chunk], np.log(np.exp(logits).sum()) - 4.0, rtol=1e-5)
    layers = jnp.stack([-features, features], axis=1)
    np.testing.assert_allclose(relevance(layers, jnp.asarray(mask)).reshape(2, 3), found)


def test_the_most_relevant_chunks_stay_in_their_order(model, monkeypatch):
    chunks = split_tokens(model.tokenizer.encode(TEXT), SIZE)
    logits = np.array([expected(model, ids) for ids in chunks])
    best = sorted(np.argsort(-logits)[:2])
    assert len(chunks) > 3 and np.diff(np.sort(logits))[-2] > 1e-3
    kept = model.internalize([TEXT, "Here we go."], keep_chunks=2)
    r = model.hypernet.config.rank
    other = len(split_tokens(model.tokenizer.encode("Here we go."), SIZE))
    assert kept.ranks.tolist() == [3 * r, (other + 1) * r]  # with the learned bias
    monkeypatch.setattr(Chunking, "split", lambda *_: [chunks[i] for i in best])
    alone = model.internalize("those two")
    for entry, ab in alone.factors.items():
        for key, a in ab.items():
            np.testing.assert_allclose(kept.factors[entry][key][:, 0], a[:, 0], rtol=1e-4, atol=1e-6)


def test_a_share_of_the_most_relevant_may_be_asked_for(model):
    chunks = split_tokens(model.tokenizer.encode(TEXT), SIZE)
    odds = np.exp([expected(model, ids) for ids in chunks])
    chance = np.sort(odds / (1 + odds))[::-1] / (odds / (1 + odds)).max()
    share = float((chance[1] + chance[2]) / 2)
    said = model.hypernet.description
    description = said | {"card": said["card"] | {"keep_loudness": share}}
    choosy = DocToLora(model.target, dataclasses.replace(model.hypernet, description=description))
    assert chance[1] - chance[2] > 1e-3
    assert choosy.internalize(TEXT).ranks.tolist() == [3 * model.hypernet.config.rank]


def test_what_is_not_finite_is_said(model):
    part = model.hypernet.params["relevance"]
    params = dict(model.hypernet.params) | {"relevance": dict(part) | {"bias": jnp.full_like(part["bias"], jnp.nan)}}
    damaged = DocToLora(model.target, dataclasses.replace(model.hypernet, params=params))
    with pytest.raises(UserError, match="which chunks stay holds NaN or infinity: the hypernetwork is damaged"):
        damaged.internalize(TEXT, keep_chunks=1)


def test_a_fresh_one_says_nothing_of_what_is_in_a_chunk(model):
    config = model.hypernet.config
    hypernet = nnx.merge(abstract_hypernet(config)[0], init_hypernet(config, 0))
    mask = jnp.arange(50)[None, None] < jnp.array([50, 25])[:, None, None]
    features = jax.random.normal(jax.random.key(0), (2, 50, config.feature_size))
    np.testing.assert_allclose(hypernet.relevance(features, mask), np.log([50, 25]) - 4.0, rtol=1e-5)
