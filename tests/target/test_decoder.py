"""The decoder agrees with itself however it is run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from d2l.adapter import Adapter, merge
from d2l.target import attention
from d2l.target.decoder import abstract_decoder, init_cache, stack_params, unstack, unstack_params
from d2l.train.pretrain import init_target
from tests.conftest import families, lively, random_adapter

FAMILIES = ("llama", "mistral", "qwen3", "gemma2", "gemma3")
ALL_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(params=FAMILIES)
def model(request, target_config):
    config = families(target_config)[request.param]
    return config, lively(init_target(config, 0))


def decoder(config, params, stacked=True):
    return nnx.merge(abstract_decoder(config, stacked=stacked)[0], params)


def close(a, b, tolerance=2e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def test_stacked_equals_layer_by_layer(model, tokens):
    config, params = model
    adapter = random_adapter(config, 3, 2, ALL_MODULES)
    logits = decoder(config, params)(tokens, adapter=adapter)
    one_by_one = decoder(config, unstack_params(params, 4), stacked=False)
    close(logits, one_by_one(tokens, adapter=unstack(adapter, 4)))
    jax.tree.map(np.testing.assert_array_equal, stack_params(unstack_params(params, 4), config), params)
    assert float(jnp.std(logits)) > 0.1


@pytest.mark.parametrize("stacked", [True, False])
def test_decoding_with_a_cache_equals_the_full_forward(model, tokens, stacked):
    config, params = model
    whole = decoder(config, params)(tokens)
    params = params if stacked else unstack_params(params, 4)
    run = decoder(config, params, stacked)
    cache = init_cache(config, 3, 24, jnp.float32, stacked=stacked)
    # Rows start at lengths of their own: 7, 8 and 9 tokens read at once, then one token a step.
    starts = jnp.array([7, 8, 9])
    x, cache, _ = run.run_blocks(run.embed(tokens[:, :9]), cache=cache, fresh=True)
    close(run.unembed(run.final_norm(x))[:, :7], whole[:, :7])
    for step in range(10):
        at = (starts + step)[:, None]
        next_token = jnp.take_along_axis(tokens, at, axis=1)
        x, cache, _ = run.run_blocks(run.embed(next_token), positions_BT=at, cache=cache)
        expected = jnp.take_along_axis(whole, at[:, :, None], axis=1)
        close(run.unembed(run.final_norm(x)), expected)


def test_reading_in_pieces_equals_reading_at_once(model, tokens):
    config, params = model
    run = decoder(config, params)
    whole = run(tokens)
    cache = init_cache(config, 3, 20, jnp.float32)
    for start in (0, 10):
        at = jnp.broadcast_to(jnp.arange(start, start + 10)[None], (3, 10))
        x, cache, _ = run.run_blocks(run.embed(tokens[:, start : start + 10]), positions_BT=at, cache=cache)
        close(run.unembed(run.final_norm(x)), whole[:, start : start + 10])


def test_later_tokens_and_padding_change_nothing_before(model, tokens):
    config, params = model
    run = decoder(config, params)
    changed = tokens.at[:, 12:].set(3)
    close(run(tokens)[:, :12], run(changed)[:, :12])
    assert not np.allclose(run(tokens)[:, 12:], run(changed)[:, 12:])


def test_packed_segments_equal_rows_of_their_own(model, tokens):
    config, params = model
    run = decoder(config, params)
    packed = jnp.concatenate([tokens[0, :11], tokens[1, :9]])[None]
    segments = jnp.array([0] * 11 + [1] * 9)[None]
    positions = jnp.concatenate([jnp.arange(11), jnp.arange(9)])[None]
    logits = run(packed, segments_BT=segments, positions_BT=positions)
    close(logits[0, :11], run(tokens[:1, :11])[0])
    close(logits[0, 11:], run(tokens[1:2, :9])[0])


def test_attention_in_blocks_equals_one_block(model, monkeypatch):
    config, params = model
    ids = jax.random.randint(jax.random.key(2), (2, 40), 0, config.vocab_size, jnp.int32)
    whole = decoder(config, params)(ids)
    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)
    close(whole, decoder(config, params)(ids))


def test_zero_b_is_the_identity_and_others_are_not(model, tokens):
    config, params = model
    run = decoder(config, params)
    adapter = random_adapter(config, 3, 2, ALL_MODULES)
    zero = {name: {"A": ab["A"], "B": jnp.zeros_like(ab["B"])} for name, ab in adapter.items()}
    np.testing.assert_array_equal(run(tokens), run(tokens, adapter=zero))
    for name, ab in adapter.items():
        assert not np.allclose(run(tokens), run(tokens, adapter={name: ab}), atol=1e-3), name


def test_merged_equals_applied_beside(model, tokens):
    config, params = model
    adapter = Adapter(random_adapter(config, 2, 3, ALL_MODULES), jnp.array([3, 3]), 0.7)
    for context in range(2):
        beside = decoder(config, params)(tokens, adapter=adapter.select([context] * 3).for_decoder())
        one = decoder(config, params)(tokens, adapter=adapter.select([context]).for_decoder())
        merged = decoder(config, merge(params, adapter, context))(tokens)
        close(beside, merged, 1e-4)
        close(beside, one)


def test_recomputed_blocks_have_the_same_gradient(model, tokens):
    config, params = model

    def loss(adapter, remat):
        return jnp.mean(jnp.square(decoder(config, params)(tokens, adapter=adapter, remat=remat)))

    adapter = random_adapter(config, 3, 2)
    plain, again = (jax.grad(loss)(adapter, remat) for remat in ("none", "full"))
    jax.tree.map(close, plain, again)
    assert float(jnp.abs(plain["down_proj"]["A"]).max()) > 0


def test_collected_inputs_are_those_of_shorter_runs(model, tokens):
    config, params = model
    run = decoder(config, params)
    x = run.embed(tokens)
    _, _, inputs = run.run_blocks(x, num_layers=3, collect=True)
    assert inputs.shape == (3, 3, 20, 32)
    for count in range(1, 3):
        close(inputs[count], run.run_blocks(x, num_layers=count)[0])


def test_collected_inputs_of_modules_make_the_blocks_output(target_config, tokens):
    config, params = target_config, lively(init_target(target_config, 0))
    run = decoder(config, params)
    x = run.embed(tokens)
    last, _, inputs = run.run_blocks(x, collect=("block", "o_proj", "down_proj"))
    after = jnp.concatenate([inputs["block"][1:], last[None]])
    layers = params["layers"]
    written = sum(
        jnp.einsum("lbti,loi->lbto", inputs[name], layers[part][name])
        for part, name in (("self_attn", "o_proj"), ("mlp", "down_proj"))
    )
    close(after, inputs["block"] + written)
    alone = decoder(config, unstack_params(params, 4), stacked=False)
    jax.tree.map(close, inputs, alone.run_blocks(x, collect=("block", "o_proj", "down_proj"))[2])


def test_rope_scaling_changes_far_positions_only_as_it_should(target_config):
    from d2l.target.config import RopeScaling

    at = jnp.arange(64)[None]
    plain, _ = attention.rope_table(target_config, at)
    linear, _ = attention.rope_table(dataclasses.replace(target_config, rope_scaling=RopeScaling("linear", 4.0)), at)
    close(linear[:, ::4], plain[:, :16])
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 128)
    llama3, _ = attention.rope_table(dataclasses.replace(target_config, rope_scaling=scaling), at)
    close(llama3[..., 0], plain[..., 0])  # the shortest wavelength is kept
    slow = jnp.cos(at.astype(jnp.float32) * (1e4 ** (-3 / 4)) / 8)  # the longest is stretched by the factor
    close(llama3[..., 3], slow)
