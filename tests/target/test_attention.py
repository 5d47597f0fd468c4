"""Attention and rotary positions against their definitions, written with plain loops in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2l.target import attention


def by_definition(q, k, v, q_index, scale, softcap, window, q_segments, k_segments):
    """One query head and one query at a time, in float64; keys and values in the layout of the cache."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    B, T, N, _ = q.shape
    K, S = k.shape[1:3]
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(B, T, N):
        head = n // (N // K)
        slots = [
            s
            for s in range(S)
            if s <= q_index[b, t]
            and (window is None or s > q_index[b, t] - window)
            and (q_segments is None or q_segments[b, t] == k_segments[b, s])
        ]
        logits = np.array([scale * q[b, t, n] @ k[b, head, s] for s in slots])
        if softcap is not None:
            logits = softcap * np.tanh(logits / softcap)
        p = np.exp(logits - logits.max())
        out[b, t, n] = sum(w * v[b, head, :, s] for w, s in zip(p / p.sum(), slots, strict=True))
    return out


@functools.partial(jax.jit, static_argnames=("segments",))
def attend(q, k, v, q_index, softcap, window, k_segments, segments):
    T, past = q.shape[1], q_index[0, 0]
    options = {}
    if segments:
        own = jax.lax.dynamic_slice_in_dim(k_segments, past, T, axis=1)
        options = {"q_segments_BT": own, "k_segments_BS": k_segments}
    return attention.attend(q, k, v, q_index_BT=q_index, scale=0.7, softcap=softcap, window=window, **options)


@pytest.mark.parametrize(("kv_heads", "group"), [(1, 3), (2, 1), (2, 2)])
@settings(max_examples=15, deadline=None)
@given(
    past=st.integers(0, 4),
    window=st.none() | st.integers(1, 6),
    softcap=st.none() | st.floats(0.5, 5.0),
    segments=st.booleans(),
    seed=st.integers(0, 99),
)
def test_attention_is_what_it_says(kv_heads, group, past, window, softcap, segments, seed):
    """Of nine slots `past` stand before the five queries, and the rest, still empty, after them."""
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(2, 5, kv_heads * group, 4)).astype(np.float32)
    k = rng.normal(size=(2, kv_heads, 9, 4)).astype(np.float32)
    v = rng.normal(size=(2, kv_heads, 4, 9)).astype(np.float32)
    q_index = np.arange(past, past + 5, dtype=np.int32)[None].repeat(2, 0)
    k_segments = np.sort(rng.integers(0, 3, (2, 9)), axis=1).astype(np.int32)
    expected = by_definition(
        q,
        k,
        v,
        q_index,
        0.7,
        softcap,
        window,
        k_segments[:, past : past + 5] if segments else None,
        k_segments if segments else None,
    )
    got = attend(q, k, v, q_index, softcap, window, k_segments, segments)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("block", "unrolled"), [(4, 16), (4, 2), (2, 32)])
def test_blocks_of_queries_change_nothing(block, unrolled, monkeypatch):
    """Also where the number of blocks is capped, and where the last block is short."""
    shapes = [(2, 19, 2, 4), (2, 1, 19, 4), (2, 1, 4, 19)]
    q, k, v = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))
    index = jnp.broadcast_to(jnp.arange(19)[None], (2, 19))

    def run():
        return jax.jit(lambda *qkv: attention.attend(*qkv, q_index_BT=index, scale=0.5, window=jnp.int32(6)))(q, k, v)

    whole = run()
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    monkeypatch.setattr(attention, "MAX_UNROLLED_BLOCKS", unrolled)
    np.testing.assert_allclose(whole, run(), rtol=1e-6, atol=1e-6)


def test_the_softmax_of_bfloat16_inputs_is_in_float32():
    """4,096 equal keys: a sum of their exponentials in bfloat16 would stop growing at 256."""
    q = jnp.ones((1, 1, 1, 2), jnp.bfloat16)
    k = jnp.zeros((1, 1, 4096, 2), jnp.bfloat16)
    v = jnp.ones((1, 1, 2, 4096), jnp.bfloat16)
    out = attention.attend(q, k, v, q_index_BT=jnp.full((1, 1), 4095), scale=1.0)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), 1.0, atol=0.01)


@given(shift=st.integers(0, 200), i=st.integers(0, 50), j=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_rotated_products_depend_on_the_distance_alone(target_config, shift, i, j):
    q, k = (jax.random.normal(jax.random.key(seed), (1, 1, 1, target_config.head_dim)) for seed in (0, 1))

    def product(a, b):
        at = [attention.rope_table(target_config, jnp.array([[p]])) for p in (a, b)]
        return float(jnp.sum(attention.apply_rope(q, *at[0]) * attention.apply_rope(k, *at[1])))

    assert product(i, j) == pytest.approx(product(i + shift, j + shift), abs=2e-4)
    assert product(0, 0) == pytest.approx(float(jnp.sum(q * k)), abs=1e-5)


def test_rotation_is_by_position_times_frequency(target_config):
    """Half h of a head turns by position * theta^(-h / half), the first half against the second."""
    x = np.asarray(jax.random.normal(jax.random.key(0), (1, 3, 1, target_config.head_dim)), np.float64)
    positions = np.array([[0, 7, 300]])
    table = attention.rope_table(target_config, jnp.asarray(positions))
    got = attention.apply_rope(jnp.asarray(x, jnp.float32), *table)
    half = target_config.head_dim // 2
    for t, h in np.ndindex(3, half):
        angle = positions[0, t] * target_config.rope_theta ** (-h / half)
        turned = (x[0, t, 0, h] + 1j * x[0, t, 0, h + half]) * np.exp(1j * angle)
        np.testing.assert_allclose(got[0, t, 0, [h, h + half]], [turned.real, turned.imag], atol=1e-4)
