"""The memory: a regression from what the target thinks at a token to the word that follows, and where it is applied."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import d2l
from d2l.adapter import Adapter, compose, loudness, merge
from d2l.errors import UserError
from d2l.hypernet.chunk import Chunking, split_tokens
from d2l.hypernet.features import check_turn, read_context
from d2l.hypernet.hypernet import abstract_hypernet, init_hypernet
from d2l.hypernet.memory import noise_maps
from d2l.hypernet.store import save_hypernet
from d2l.model import DocToLora
from d2l.target.decoder import abstract_decoder, stack_params, unstack_params
from d2l.target.factors import adapter_layers
from d2l.target.weights import load_target
from d2l.train.pretrain import init_target
from tests.conftest import hypernet_config, lively, random_adapter

LAYERS = (1, 3)


@pytest.fixture(scope="module")
def decoder(target_config):
    return nnx.merge(abstract_decoder(target_config)[0], lively(init_target(target_config, 0)))


def remembering(target_config, **changes):
    fields = {"memory_layers": LAYERS, "memory_tokens": 20, "turn_tokens": (2, 1), "aggregator": "direct"}
    return hypernet_config(target_config, **fields | changes)


def perturbed(params, seed=3):
    """No part of a fresh memory that is zero stays so."""
    keys = iter(jax.random.split(jax.random.key(seed), 99))
    return params | {
        "memory": jax.tree.map(lambda a: a + 0.2 * jax.random.normal(next(keys), a.shape), params["memory"])
    }


def build(config, params=None):
    return nnx.merge(abstract_hypernet(config)[0], params or init_hypernet(config, 0))


def of_memory(factors):
    return {name: ab for name, ab in factors.items() if "@" in name}


def close(a, b, tolerance=2e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def test_a_context_answers_to_its_own_keys_with_the_words_that_follow(decoder, target_config, tokens):
    """Against `numpy.linalg.lstsq` over all tokens but the first; without a ridge each key gives its value."""
    config = remembering(target_config, memory_ridge=1e-6)
    hypernet = build(config)
    features, sources = read_context(decoder, config, tokens)
    chunks = of_memory(hypernet(features, jnp.ones(tokens.shape, bool), sources=sources))
    factors, _ = compose(chunks, jnp.arange(3), jnp.zeros(3, jnp.int32), num_contexts=3, max_chunks=1, bias=None)
    solved = hypernet.solve(factors)
    _, _, inputs = decoder.run_blocks(decoder.embed(tokens), collect=("block", "down_proj"))
    words = np.asarray(decoder.word_directions(tokens))
    for layer in LAYERS:
        ab = jax.tree.map(np.asarray, solved[f"down_proj@{layer}"])
        for n in range(3):
            h = np.asarray(inputs["down_proj"][layer, n], np.float64)
            first = h[0] / np.linalg.norm(h[0])
            keys = (h - (h @ first)[:, None] * first)[1:]
            stream = np.linalg.norm(np.asarray(inputs["block"][layer, n]), axis=-1)[1:]
            said = np.zeros((19, 32))  # of tokens 2 to 17, whose next one is of the document
            said[1:17] = words[n, 3:19]
            said *= 0.2 * stream[:, None] / (1 + np.exp(-2.0))
            fitted = np.linalg.lstsq(keys, said, rcond=None)[0]
            delta = config.scale * ab["A"][0, n].T @ ab["B"][0, n]
            np.testing.assert_allclose(keys @ delta, said, rtol=0, atol=2e-3 * np.abs(said).max())
            np.testing.assert_allclose(delta, fitted, rtol=0, atol=2e-2 * np.abs(fitted).max())
            assert np.abs(h[0] @ ab["A"][0, n].T).max() < 1e-4  # the first token of a prompt stays as it is


def test_a_ridge_makes_it_the_closed_form(decoder, target_config, tokens):
    config = remembering(target_config)
    hypernet = build(config, perturbed(init_hypernet(config, 0)))
    features, sources = read_context(decoder, config, tokens)
    chunks = of_memory(hypernet(features, jnp.ones(tokens.shape, bool), sources=sources))
    factors, _ = compose(chunks, jnp.array([0, 0, 1]), jnp.array([0, 1, 0]), num_contexts=2, max_chunks=2, bias=None)
    solved = hypernet.solve(factors)
    memory = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(hypernet.memory)))
    for j, layer in enumerate(LAYERS):
        name = f"down_proj@{layer}"
        for c in range(2):
            k = np.asarray(factors[name]["A"][0, c], np.float64)
            weight = np.exp(memory["metric"][j].astype(np.float64))
            size = np.maximum(np.linalg.norm(k * weight, axis=1, keepdims=True), 1e-6)
            gram = (k * weight / size) @ (k * weight / size).T
            ridge = config.memory_ridge * np.exp(memory["log_ridge"][j])
            A = np.linalg.solve(gram + ridge * np.eye(40), k * weight**2 / size**2)
            A = A + A @ memory["seen"][j] @ memory["asked"][j]
            close(solved[name]["A"][0, c], A, 1e-4)
            np.testing.assert_array_equal(solved[name]["B"], factors[name]["B"])
    # A context of one chunk has room for another, which is nothing.
    assert not np.any(solved["down_proj@1"]["A"][0, 1, 20:])


@pytest.mark.parametrize("size", [32, 0])
def test_noise_is_discounted_by_its_covariance(decoder, target_config, tokens, size):
    """The map of least squares from k + e to the value, for every e of the covariance C: V^T K (K^T K + C)^-1."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(48, 48)))[0][:, :5]
    C = 1e-2 * np.eye(48) + (directions * [5.0, 3.0, 2.0, 1.0, 0.5]) @ directions.T
    config = remembering(target_config, memory_noise=5, memory_ridge=1e-2, memory_size=size)
    params = init_hypernet(config, 0)
    assert ("seen" in params["memory"]) == bool(size)
    assert not np.any(params["memory"]["noise_out"])
    maps = noise_maps(jnp.asarray([C, C], jnp.float32), 5)
    hypernet = build(config, params | {"memory": dict(params["memory"]) | {"noise_in": maps, "noise_out": maps}})
    features, sources = read_context(decoder, config, tokens)
    chunks = of_memory(hypernet(features, jnp.ones(tokens.shape, bool), sources=sources))
    factors, _ = compose(chunks, jnp.arange(3), jnp.zeros(3, jnp.int32), num_contexts=3, max_chunks=1, bias=None)
    for name, ab in hypernet.solve(factors).items():
        for c in range(3):
            k = np.asarray(factors[name]["A"][0, c], np.float64)
            close(ab["A"][0, c], k @ np.linalg.inv(k.T @ k + C), 1e-3)


def test_no_row_answers_to_the_first_token(decoder, target_config, tokens):
    """Weights of keys tilt rows towards it; without that part they answer to all other keys as they did."""
    answers, tokens = {}, tokens.at[:, 0].set(1)  # as chat turns begin alike
    for skip in (False, True):
        config = remembering(target_config, memory_noise=3, memory_skip_first=skip)
        hypernet = build(config, perturbed(init_hypernet(config, 0)))
        features, sources = read_context(decoder, config, tokens)
        chunks = of_memory(hypernet(features, jnp.ones(tokens.shape, bool), sources=sources))
        # Three chunks of two contexts, the second of which has one.
        place = jnp.array([0, 0, 1]), jnp.array([0, 1, 0])
        factors, _ = compose(chunks, *place, num_contexts=2, max_chunks=2, bias=None)
        for j, (name, ab) in enumerate(hypernet.solve(factors).items()):
            x = np.asarray(sources["memory"]["inputs"][j])
            first = x[0, 0] / np.linalg.norm(x[0, 0])
            keys = x[:, 1:] - (x[:, 1:] @ first)[..., None] * first
            answers[skip, name, "first"] = np.abs(np.asarray(ab["A"])[0] @ first).max()
            answers[skip, name] = np.einsum("cri,nti->crnt", np.asarray(ab["A"])[0], keys)
    for name in ("down_proj@1", "down_proj@3"):
        assert answers[False, name, "first"] > 1e-2 > 1e-4 > answers[True, name, "first"]
        close(answers[True, name], answers[False, name], 1e-3)


def test_what_is_said_passes_through_a_learned_matrix(decoder, target_config, tokens):
    features, sources = read_context(decoder, remembering(target_config), tokens)

    def chunks(maps=None, **changes):
        config = remembering(target_config, **changes)
        params = perturbed(init_hypernet(remembering(target_config), 0))
        if config.memory_value_map:
            fresh = init_hypernet(config, 0)["memory"]["value_map"]
            params |= {"memory": params["memory"] | {"value_map": fresh if maps is None else maps}}
        return of_memory(build(config, params)(features, jnp.ones(tokens.shape, bool), sources=sources))

    plain, fresh = chunks(), chunks(memory_value_map=True)
    jax.tree.map(np.testing.assert_array_equal, plain, fresh)
    maps = jax.random.normal(jax.random.key(4), (2, 32, 32))
    for j, (name, ab) in enumerate(chunks(maps, memory_value_map=True).items()):
        np.testing.assert_array_equal(ab["A"], plain[name]["A"])
        close(ab["B"], plain[name]["B"] @ (jnp.eye(32) + maps[j]), 1e-4)


def test_packed_and_padded_chunks_are_those_of_chunks_alone(decoder, target_config, tokens):
    config = remembering(target_config)
    hypernet = build(config, perturbed(init_hypernet(config, 0)))
    place = {
        "positions_NT": jnp.concatenate([jnp.arange(8), jnp.arange(12)])[None],
        "segments_NT": jnp.repeat(jnp.arange(2), jnp.array([8, 12]))[None],
    }
    features, sources = read_context(decoder, config, tokens[:1], **place)
    mask = place["segments_NT"][:, None] == jnp.arange(3)[None, :, None]  # the third chunk is not there
    packed = of_memory(hypernet(features, mask, sources=sources, chunks_C=jnp.array([1, 0])))
    for chunk, (start, stop) in enumerate(((8, 20), (0, 8))):
        ids = jnp.pad(tokens[:1, start:stop], ((0, 0), (0, 4)))
        features, sources = read_context(decoder, config, ids)
        alone = of_memory(hypernet(features, jnp.arange(stop - start + 4)[None] < stop - start, sources=sources))
        jax.tree.map(lambda a, b, chunk=chunk: close(a[chunk], b[0]), packed, alone)
        rows = np.abs(np.asarray(alone["down_proj@3"]["B"][0, 0])).max(axis=-1)
        assert list(np.flatnonzero(rows)) == list(range(2, stop - start - 2))  # neither the turn nor the last token


def test_what_is_remembered_has_no_gradient_and_how_it_is_has(decoder, target_config, tokens):
    config = remembering(target_config, memory_noise=3, memory_value_map=True)
    graphdef, params = nnx.split(decoder)
    hyper_def, hyper = abstract_hypernet(config)[0], perturbed(init_hypernet(config, 0))

    def total(params, hyper):
        features, sources = read_context(nnx.merge(graphdef, params), config, tokens)
        hypernet = nnx.merge(hyper_def, hyper)
        chunks = of_memory(hypernet(features, jnp.ones(tokens.shape, bool), sources=sources))
        factors, _ = compose(chunks, jnp.arange(3), jnp.zeros(3, jnp.int32), num_contexts=3, max_chunks=1, bias=None)
        return sum(jnp.sum(jnp.square(a)) for a in jax.tree.leaves(hypernet.solve(factors)))

    of_target, of_hyper = jax.grad(total, argnums=(0, 1))(params, hyper)
    assert all(not np.any(g) for g in jax.tree.leaves(of_target))
    assert all(np.all(np.isfinite(g)) and np.any(g) for g in jax.tree.leaves(of_hyper["memory"]))


@pytest.fixture(scope="module")
def adapter(target_config):
    """Factors of every layer, and more in two."""
    factors = random_adapter(target_config, 3, 2)
    for layer in LAYERS:
        more = random_adapter(target_config, 3, 5, seed=layer)["down_proj"]
        factors[f"down_proj@{layer}"] = jax.tree.map(lambda a: 0.5 * a[:1], more)
    return Adapter(factors, jnp.array([2, 2, 2]), 1.0, "tiny", "ab" * 32)


def test_stacked_unstacked_and_merged_layers_agree(decoder, target_config, tokens, adapter):
    params = nnx.to_pure_dict(nnx.split(decoder)[1])
    stacked, _, inputs = decoder.run_blocks(decoder.embed(tokens), adapter=adapter.factors, collect=("block",))
    single = nnx.merge(abstract_decoder(target_config, stacked=False)[0], unstack_params(params, 4))
    per_layer = adapter_layers(adapter.factors, 4)
    assert [ab["down_proj"]["A"].shape[1] for ab in per_layer] == [2, 7, 2, 7]
    unstacked, _, _ = single.run_blocks(single.embed(tokens), adapter=per_layer)
    close(stacked, unstacked, 1e-4)
    assert inputs["block"].shape == (4, 3, 20, 32)
    for context in range(3):
        merged = nnx.merge(abstract_decoder(target_config)[0], merge(params, adapter, context))
        close(merged.run_blocks(merged.embed(tokens[context : context + 1]))[0], stacked[context : context + 1], 1e-3)
    plain, _, _ = decoder.run_blocks(decoder.embed(tokens), adapter={"down_proj": adapter.factors["down_proj"]})
    assert not np.allclose(plain, stacked, atol=1e-2)
    assert stack_params(unstack_params(params, 4), target_config).keys() == params.keys()


def test_a_memory_has_a_gate_of_its_own(decoder, tokens, adapter):
    """Two contexts end to end in each row, of which a gate lets the second through."""
    both = {
        name: jax.tree.map(lambda a: jnp.concatenate([jnp.roll(a, 1, axis=1), a], axis=2), ab)
        for name, ab in adapter.factors.items()
    }
    for name in of_memory(both):
        gate = jnp.broadcast_to(jnp.arange(10) >= 5, (1, 3, 20, 10)).astype(jnp.float32)
        both[name] = both[name] | {"gate": gate}
    gate = jnp.broadcast_to(jnp.arange(4) >= 2, (3, 20, 4)).astype(jnp.float32)
    x = decoder.embed(tokens)
    close(
        decoder.run_blocks(x, adapter=both, gate_BTR=gate)[0], decoder.run_blocks(x, adapter=adapter.factors)[0], 1e-4
    )


def test_a_memory_is_saved_with_the_rest(adapter, tmp_path):
    adapter.save(tmp_path / "a")
    again = Adapter.load(tmp_path / "a")
    jax.tree.map(np.testing.assert_array_equal, adapter.factors, again.factors)
    assert again.rank == 2


@pytest.fixture(scope="module")
def model(target_folder, tmp_path_factory):
    target = load_target(target_folder)
    before, after = map(len, target.tokenizer.turn_wrapper)
    config = remembering(target.config, memory_tokens=24 + before + after, turn_tokens=(before, after))
    folder = tmp_path_factory.mktemp("hyper") / "h"
    hashes = {"target_name": target.name, "target_hash": target.weights_hash}
    params = perturbed(init_hypernet(config, 0))
    save_hypernet(folder, config, params, **hashes, card={"max_chunk_len": 24})
    return d2l.load(target_folder, folder)


def test_documents_in_chunks_are_remembered_together(model):
    texts = ["The grass is green. The sky is blue. " * 5, "Here we go."]
    both = model.internalize(texts)
    m = model.hypernet.config.memory_tokens
    counts = [int(rank) // model.hypernet.config.rank - 1 for rank in both.ranks]
    assert counts[0] > 2 and counts[1] == 1
    assert both.factors["down_proj@3"]["A"].shape == (1, 2, counts[0] * m, 48)
    for n, text in enumerate(texts):
        alone = model.internalize(text)
        for name, ab in alone.factors.items():
            for key, a in ab.items():
                close(both.factors[name][key][:, n, : a.shape[2]], a[:, 0], 1e-4)
    question = [model.tokenizer.user_turn("What is the special magic number?")]
    with_memory = model.logits(question, model.internalize(texts[1]))
    without = {name: ab for name, ab in model.internalize(texts[1]).factors.items() if "@" not in name}
    plain = model.logits(question, dataclasses.replace(model.internalize(texts[1]), factors=without))
    assert not np.allclose(with_memory, plain, atol=1e-3)


def test_the_loudest_chunks_are_remembered_in_their_order(model):
    text = "The grass is green. The sky is blue. Here we go. The sun is yellow. " * 4
    whole = model.internalize(text)
    r, name = model.hypernet.config.rank, "down_proj"
    count = int(whole.ranks[0]) // r - 1
    each = {
        name: {
            key: jnp.moveaxis(a[:, 0, : count * r].reshape(4, count, r, -1), 1, 0)
            for key, a in whole.factors[name].items()
        }
    }
    best = sorted(np.argsort(-np.asarray(loudness(each)))[:2])
    kept = model.internalize([text, "Here we go."], keep_chunks=2)
    assert count > 3 and list(kept.ranks) == [3 * r, 2 * r]
    ids = [split_tokens(model.tokenizer.encode(text), 24)[i] for i in best]
    monkey = pytest.MonkeyPatch()
    monkey.setattr(type(model.hypernet.chunking), "split", lambda *_: ids)
    alone = model.internalize("those two")
    monkey.undo()
    for entry, ab in alone.factors.items():
        for key, a in ab.items():
            close(kept.factors[entry][key][:, 0, : a.shape[2]], a[:, 0], 1e-4)


def test_quiet_chunks_may_go(model):
    """By a share of the loudest that the card names; the loudest stays."""
    texts = [
        "The grass is green. The sky is blue. What is the special magic number? It is 4731, there and back.",
        "Go.",
    ]
    said = model.hypernet.description

    def choosy(share):
        description = said | {"card": said["card"] | {"keep_loudness": share}}
        return DocToLora(model.target, dataclasses.replace(model.hypernet, description=description))

    counts = {share: list(map(int, choosy(share).internalize(texts).ranks)) for share in (1e-6, 1.0)}
    assert counts[1e-6] == list(map(int, model.internalize(texts).ranks))
    r = model.hypernet.config.rank
    assert counts[1.0][0] < counts[1e-6][0] and counts[1.0] == [2 * r, 2 * r]
    with pytest.raises(UserError, match="keep_loudness is 2: give a share of the loudest, 0 to 1"):
        Chunking(24, keep_loudness=2)


def test_a_chunk_has_to_fit(model):
    with pytest.raises(UserError, match="max_chunk_len is 25, .* room for 24 tokens"):
        model.internalize("The sky is blue.", max_chunk_len=25)
    config, turn = model.hypernet.config, model.tokenizer.turn_wrapper
    check_turn(config, turn, 24)
    with pytest.raises(UserError, match="chunks of 25 tokens .* raise memory_tokens"):
        check_turn(config, turn, 25)
    with pytest.raises(UserError, match="turn_tokens of the hypernetwork"):
        check_turn(config, ((1,), (2,)), 24)


def test_bad_configs_are_named(target_config):
    for changes, match in (
        ({"features": "embed_only"}, "with features embed_only"),
        ({"modules": ("o_proj",)}, "target_modules o_proj: it needs early_exit and down_proj"),
        ({"memory_layers": (2, 1)}, r"memory_layers is \(2, 1\): give layers of the target, ascending"),
        ({"memory_layers": (4,)}, "0 to 3"),
        ({"memory_noise": 48}, "memory_noise is 48: give fewer directions than an input of down_proj has numbers, 48"),
        ({"memory_tokens": 3}, "memory_tokens is 3, the chat turn alone has 3"),
    ):
        with pytest.raises(UserError, match=match):
            remembering(target_config, **changes)
