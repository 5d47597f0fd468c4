"""The hypernetwork: every option yields adapters of the right shape, padding and batching change nothing."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from d2l.errors import UserError
from d2l.hypernet.aggregator import layer_order
from d2l.hypernet.config import HypernetConfig
from d2l.hypernet.features import check_encoder, context_features, read_context
from d2l.hypernet.hypernet import abstract_hypernet, init_hypernet
from d2l.hypernet.store import load_hypernet, save_hypernet
from d2l.target.decoder import abstract_decoder
from d2l.train.pretrain import init_target
from tests.conftest import hypernet_config, lively

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OPTIONS = {
    "early exit": {},
    "embeddings": {"features": "embed_only"},
    "per layer": {"features": "per_layer_activations"},
    "direct": {"aggregator": "direct"},
    "direct per layer": {"aggregator": "direct", "features": "per_layer_activations"},
    "self-attention": {"num_self_attn_per_block": 2},
    "shared weights": {"num_blocks": 3, "num_self_attn_per_block": 1, "shared_weights": True},
    "two MLPs": {"num_pre_head_layers": 2},
    "no MLP": {"num_pre_head_layers": 0},
    "one MLP for all layers": {"per_layer_processing": False},
    "no bias": {"use_bias": False},
    "row gates": {"row_gate": True},
}


@pytest.fixture(scope="module")
def decoder(target_config):
    return nnx.merge(abstract_decoder(target_config)[0], lively(init_target(target_config, 0)))


def build(config, seed=0):
    return nnx.merge(abstract_hypernet(config)[0], init_hypernet(config, seed))


def close(a, b):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name, decoder, target_config, tokens):
    config = hypernet_config(target_config, ALL, **OPTIONS[name])
    hypernet = build(config)
    mask = jnp.arange(20)[None, :] < jnp.array([20, 13, 7])[:, None]
    features = context_features(decoder, config, tokens)
    factors = hypernet(features, mask)
    assert sorted(factors) == sorted(ALL)
    for module, (d_in, d_out) in target_config.module_sizes.items():
        assert factors[module]["A"].shape == (3, 4, 2, d_in)
        assert factors[module]["B"].shape == (3, 4, 2, d_out)
    # Padding is not read, and a chunk does not depend on its neighbours.
    changed = context_features(decoder, config, jnp.where(mask, tokens, 5))
    jax.tree.map(close, factors, hypernet(changed, mask))
    alone = hypernet(features[2:, ..., :7, :], mask[2:, :7])
    jax.tree.map(lambda a, b: close(a[2:], b), factors, alone)
    # Documents, ranks and layers differ from each other.
    for ab in factors.values():
        a = np.asarray(ab["A"])
        assert not np.allclose(a[0], a[1], atol=1e-4)
        assert not np.allclose(a[:, :, 0], a[:, :, 1], atol=1e-4)
        assert not np.allclose(a[:, 0], a[:, 1], atol=1e-4)
    if config.per_layer:
        jax.tree.map(close, factors, hypernet(features, mask, iterative=True))
    assert (hypernet.bias() is None) == (not config.use_bias)


def test_features_are_what_the_paper_says(decoder, target_config, tokens):
    per_layer = hypernet_config(target_config, features="per_layer_activations")
    features = context_features(decoder, per_layer, tokens)
    assert features.shape == (3, 4, 20, 32)
    x = decoder.embed(tokens)
    close(features[:, 0], x)
    close(features[:, 2], decoder.run_blocks(x, num_layers=2)[0])
    close(features[:, 3], decoder.final_norm(decoder.run_blocks(x, num_layers=3)[0]))
    early = context_features(decoder, hypernet_config(target_config, layer_idx=2), tokens)
    close(early, decoder.final_norm(decoder.run_blocks(x, num_layers=2)[0]))
    close(context_features(decoder, hypernet_config(target_config, features="embed_only"), tokens), x)


def test_no_gradient_reaches_the_encoder(decoder, target_config, tokens):
    config = hypernet_config(target_config)
    graphdef, params = nnx.split(decoder)

    def total(params):
        return jnp.sum(context_features(nnx.merge(graphdef, params), config, tokens))

    assert all(not np.any(g) for g in jax.tree.leaves(jax.grad(total)(params)))


def test_the_papers_hypernetwork_has_309_million_parameters():
    """For gemma-2-2b (26 layers, 2304 -> 9216 MLP): 309,468,064."""
    config = HypernetConfig(
        target_modules=("down_proj",), d_in=(9216,), d_out=(2304,), num_layers=26, feature_size=2304
    )
    assert sum(math.prod(a.shape) for a in jax.tree.leaves(abstract_hypernet(config)[1])) == 309_468_064


def test_shared_blocks_run_the_stored_layers_in_the_releases_order():
    assert layer_order(3, 0, False) == (0, 1, 2)
    assert layer_order(3, 1, False) == (0, 1, 2, 3, 4, 5)
    assert layer_order(3, 0, True) == (0, 1, 1)
    assert layer_order(3, 2, True) == (0, 1, 2, 3, 1, 2, 3, 1, 2)


def test_initial_b_is_the_scaler(decoder, target_config, tokens):
    features = context_features(decoder, hypernet_config(target_config), tokens)
    mask = jnp.ones((3, 20), bool)
    zero = build(hypernet_config(target_config, scaler_b_init=0.0))(features, mask)
    assert not np.any(zero["down_proj"]["B"]) and np.any(zero["down_proj"]["A"])


def test_a_gate_scales_the_b_row_of_its_own_embedding(decoder, target_config, tokens):
    config = hypernet_config(target_config, ("o_proj", "down_proj"), row_gate=True)
    features = context_features(decoder, config, tokens)
    mask = jnp.ones((3, 20), bool)
    params = init_hypernet(config, 0)
    graphdef, abstract = abstract_hypernet(config)
    plain = build(dataclasses.replace(config, row_gate=False))(features, mask)
    assert {k: v.shape for k, v in abstract["gate"].items()} == {"weight": (4, 2, 16), "bias": (4, 2, 2)}

    nearly_open = nnx.merge(graphdef, params)(features, mask)
    for name, factors in plain.items():
        close(nearly_open[name]["A"], factors["A"])
        close(nearly_open[name]["B"], factors["B"] * jax.nn.sigmoid(3.0))

    # Shut where the embedding points away from the gate's vector; one row of one layer's o_proj shut by its bias.
    shut = params["gate"]["bias"].at[2, 1, 0].set(-100.0)
    vector = 40 * jax.random.normal(jax.random.key(1), params["gate"]["weight"].shape)
    gated = nnx.merge(graphdef, params | {"gate": {"weight": vector, "bias": shut}})(features, mask)
    assert not np.any(gated["o_proj"]["B"][:, 2, 0]) and np.any(plain["o_proj"]["B"][:, 2, 0])
    share = np.linalg.norm(gated["down_proj"]["B"], axis=-1) / np.linalg.norm(plain["down_proj"]["B"], axis=-1)
    assert share.min() < 0.1 and share.max() > 0.9 and share.max() <= 1 + 1e-6


@pytest.fixture(scope="module")
def copying(target_config):
    return hypernet_config(target_config, ("o_proj", "down_proj"), copy_size=8, row_gate=True)


def test_copies_are_of_the_tokens_that_a_row_points_at(decoder, copying, tokens):
    """Against the same in plain loops over documents, layers and rows."""
    params = init_hypernet(copying, 0)
    params["copies"] |= {key: 3 * params["copies"][key] for key in ("query", "key")}
    hypernet = nnx.merge(abstract_hypernet(copying)[0], params)
    mask = jnp.arange(20)[None, :] < jnp.array([20, 13, 7])[:, None]
    features, sources = read_context(decoder, copying, tokens)
    factors = hypernet(features, mask, sources=sources)
    without = jax.tree.map(jnp.zeros_like, sources)
    plain = hypernet(features, mask, sources=without)
    e = np.asarray(hypernet.embed(features, mask[:, None], False, False)).reshape(3, 4, 2, 2, 16)
    query, key = (np.asarray(params["copies"][name]) for name in ("query", "key"))
    table = np.asarray(decoder.embed(tokens))
    out = hypernet.pre_head["0"](jnp.asarray(e))
    gate = np.asarray(hypernet.gates(out / jnp.linalg.norm(out, axis=-1, keepdims=True)))
    for n, length in enumerate((20, 13, 7)):
        for layer, m, rank in np.ndindex(4, 2, 2):
            name = copying.target_modules[m]
            weights = []
            for head in range(2):
                logits = np.asarray(features[n, 1:length]) @ key[head] @ (e[n, layer, m, rank] @ query[head]) / 8**0.5
                weights.append(np.exp(logits) / (1 + np.exp(logits).sum()))
            gain = {part: np.asarray(a[layer, rank]) for part, a in params["copies"]["gain"][name].items()}
            unit = table[n] / np.sqrt((table[n] ** 2).mean(-1, keepdims=True) + 1e-6)
            after = np.concatenate([unit[1:length], np.zeros_like(unit[length - 1 :])])
            A = weights[0] @ np.asarray(sources["inputs"][name][layer, n, 1:length]) * gain["A"]
            B = weights[0] @ after[1:length] * gain["next"] + weights[1] @ unit[1:length] * gain["here"]
            B = B * np.asarray(params["scaler_copy"][name][layer, rank]) * gate[n, layer, m, rank]
            close(factors[name]["A"][n, layer, rank] - plain[name]["A"][n, layer, rank], A)
            np.testing.assert_allclose(
                factors[name]["B"][n, layer, rank] - plain[name]["B"][n, layer, rank], B, rtol=1e-3, atol=2e-7
            )
            assert np.abs(A).max() > 1e-3 and np.abs(B).max() > 1e-5


def test_copies_of_packed_chunks_are_those_of_chunks_alone(decoder, copying, tokens):
    hypernet = build(copying)
    place = {
        "positions_NT": jnp.concatenate([jnp.arange(8), jnp.arange(12)])[None],
        "segments_NT": jnp.repeat(jnp.arange(2), jnp.array([8, 12]))[None],
    }
    features, sources = read_context(decoder, copying, tokens[:1], **place)
    mask = place["segments_NT"][:, None] == jnp.arange(3)[None, :, None]  # the third chunk is not there
    packed = hypernet(features, mask, sources=sources, chunks_C=jnp.array([1, 0]))
    for chunk, ids in enumerate((tokens[:1, 8:], tokens[:1, :8])):
        features, sources = read_context(decoder, copying, ids)
        alone = hypernet(features, jnp.ones(ids.shape, bool), sources=sources)
        jax.tree.map(lambda a, b, chunk=chunk: close(a[chunk], b[0]), packed, alone)


def test_what_is_copied_has_no_gradient_and_pointers_have(decoder, copying, tokens):
    graphdef, params = nnx.split(decoder)
    hyper_def, hyper = abstract_hypernet(copying)[0], init_hypernet(copying, 0)

    def total(params, hyper):
        features, sources = read_context(nnx.merge(graphdef, params), copying, tokens)
        factors = nnx.merge(hyper_def, hyper)(features, jnp.ones(tokens.shape, bool), sources=sources)
        return sum(jnp.sum(a**2) for a in jax.tree.leaves(factors))

    of_target, of_hyper = jax.grad(total, argnums=(0, 1))(params, hyper)
    assert all(not np.any(g) for g in jax.tree.leaves(of_target))
    assert all(np.any(g) for g in jax.tree.leaves((of_hyper["copies"], of_hyper["scaler_copy"])))


def test_bad_configs_are_named(target_config):
    for changes, match in (
        ({"features": "all"}, "features is 'all'"),
        ({"aggregator": "mean"}, "aggregator is 'mean'"),
        ({"layer_idx": None}, "without layer_idx"),
        ({"copy_size": 8, "features": "embed_only"}, "copy_size is 8 with features embed_only"),
        ({"copy_size": 8, "modules": ("up_proj",)}, "target_modules up_proj: it needs early_exit, and modules that"),
    ):
        with pytest.raises(UserError, match=match):
            hypernet_config(target_config, **changes)
    with pytest.raises(UserError, match="has 4 layers"):
        check_encoder(hypernet_config(target_config, layer_idx=9), target_config)
    with pytest.raises(UserError, match="hidden size 32"):
        check_encoder(hypernet_config(target_config, feature_size=64), target_config)


def test_store_round_trip_and_damage(target_config, tmp_path):
    config = hypernet_config(target_config)
    params = init_hypernet(config, 0)
    about = {"target_name": "tiny", "target_hash": "ab" * 32, "card": {"seed": 0}}
    save_hypernet(tmp_path / "h", config, params, **about)
    again = load_hypernet(tmp_path / "h")
    assert again[0] == config and again[2]["card"] == {"seed": 0}
    jax.tree.map(np.testing.assert_array_equal, params, again[1])

    save_hypernet(tmp_path / "nan", config, params | {"head": params["head"] * jnp.nan}, **about)
    with pytest.raises(UserError, match="head .* NaN"):
        load_hypernet(tmp_path / "nan")
    save_hypernet(tmp_path / "less", config, {k: v for k, v in params.items() if k != "head"}, **about)
    with pytest.raises(UserError, match="nothing for the weight head"):
        load_hypernet(tmp_path / "less")
    save_hypernet(tmp_path / "more", config, params | {"extra": params["head"]}, **about)
    with pytest.raises(UserError, match="does not use: extra"):
        load_hypernet(tmp_path / "more")
    weights = tmp_path / "h" / "hypernet.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(UserError, match="damaged"):
        load_hypernet(tmp_path / "h")
    with pytest.raises(UserError, match="holds no hypernetwork"):
        load_hypernet(tmp_path / "nothing")
