"""The adapter: composition, selection, files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2l.adapter import Adapter, compose, keep_loudest, loudness
from d2l.errors import UserError

L, R, D_IN, D_OUT = 2, 3, 5, 4


def chunks_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "down_proj": {
            "A": jnp.asarray(rng.normal(size=(count, L, R, D_IN)), jnp.float32),
            "B": jnp.asarray(rng.normal(size=(count, L, R, D_OUT)), jnp.float32),
        }
    }


def bias(seed=9):
    return jax.tree.map(lambda a: a[0], chunks_of(1, seed))


def change(factors):
    """||B^T A|| of chunks [N, L, r, d], as written."""
    products = jnp.einsum("nlri,nlro->nlio", factors["down_proj"]["A"], factors["down_proj"]["B"])
    return jnp.sqrt(jnp.sum(products**2, axis=(1, 2, 3)))


def test_loudness_is_the_norm_of_the_change():
    chunks = chunks_of(4)
    np.testing.assert_allclose(loudness(chunks), change(chunks), rtol=1e-5)


@settings(max_examples=10, deadline=None)
@given(contexts=st.lists(st.integers(-1, 2), min_size=1, max_size=9), keep=st.integers(1, 3), calls=st.integers(1, 3))
def test_the_loudest_chunks_stay_however_they_come(contexts, keep, calls):
    chunks = chunks_of(len(contexts))
    loud, contexts = np.asarray(change(chunks)), np.array(contexts)
    kept = jax.tree.map(lambda a: jnp.zeros((L, 3, keep * R, a.shape[-1]), a.dtype), bias())
    for part in np.array_split(np.arange(len(contexts)), calls):
        if len(part):
            kept = keep_loudest(kept, jax.tree.map(lambda a, part=part: a[part], chunks), jnp.asarray(contexts[part]))
    for context in range(3):
        wanted = [n for n in np.argsort(-loud) if contexts[n] == context][:keep]
        for key, a in chunks["down_proj"].items():
            rows = [jnp.asarray(a[n]) for n in wanted] + [jnp.zeros_like(a[0])] * (keep - len(wanted))
            np.testing.assert_array_equal(kept["down_proj"][key][:, context], jnp.concatenate(rows, axis=1))


@settings(max_examples=6, deadline=None)
@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    spare=st.integers(0, 2),
    padding=st.integers(0, 2),
    with_bias=st.booleans(),
    data=st.data(),
)
def test_compose_concatenates_chunks_in_order_and_the_bias_once(counts, spare, padding, with_bias, data):
    rows = [(c, s) for c, n in enumerate(counts) for s in range(n)] + [(-1, 0)] * padding
    order = data.draw(st.permutations(range(len(rows))))
    rows = [rows[i] for i in order]
    chunks, shared = chunks_of(len(rows)), bias() if with_bias else None
    factors, ranks = compose(
        chunks,
        jnp.array([c for c, _ in rows]),
        jnp.array([s for _, s in rows]),
        num_contexts=len(counts),
        max_chunks=max(counts) + spare,
        bias=shared,
    )
    for key in ("A", "B"):
        got = factors["down_proj"][key]
        assert got.shape[2] == (max(counts) + spare + with_bias) * R
        for context, count in enumerate(counts):
            parts = [chunks["down_proj"][key][rows.index((context, slot))] for slot in range(count)]
            parts += [shared["down_proj"][key]] if with_bias else []
            expected = np.concatenate(parts, axis=1)
            np.testing.assert_array_equal(got[:, context, : expected.shape[1]], expected)
            assert not np.any(got[:, context, expected.shape[1] :])
            assert int(ranks[context]) == expected.shape[1]


def test_the_sum_over_ranks_is_the_sum_over_chunks():
    """Concatenation along the rank adds the chunks' updates (paper section 3.3)."""
    chunks, shared = chunks_of(3), bias()
    both = dict(num_contexts=1, max_chunks=3, bias=shared)
    factors, _ = compose(chunks, jnp.zeros(3, jnp.int32), jnp.arange(3), **both)
    delta = jnp.einsum("lcri,lcro->lio", factors["down_proj"]["A"], factors["down_proj"]["B"])
    parts = jnp.einsum("nlri,nlro->lio", chunks["down_proj"]["A"], chunks["down_proj"]["B"])
    parts += jnp.einsum("lri,lro->lio", shared["down_proj"]["A"], shared["down_proj"]["B"])
    np.testing.assert_allclose(delta, parts, rtol=1e-5, atol=1e-5)


@pytest.fixture
def adapter():
    factors, ranks = compose(
        chunks_of(3), jnp.array([0, 0, 1]), jnp.array([0, 1, 0]), num_contexts=2, max_chunks=2, bias=bias()
    )
    return Adapter(factors, ranks, 2.5, "tiny", "ab" * 32)


def test_size_selection_and_scale(adapter):
    assert adapter.nbytes == 4 * L * 2 * 3 * R * (D_IN + D_OUT)
    assert (adapter.num_contexts, adapter.rank) == (2, 9)
    picked = adapter.select([1, 0, 1])
    np.testing.assert_array_equal(picked.ranks, [6, 9, 6])
    np.testing.assert_array_equal(picked.factors["down_proj"]["A"][:, 0], adapter.factors["down_proj"]["A"][:, 1])
    ours = adapter.scaled(2).for_decoder()["down_proj"]
    np.testing.assert_array_equal(ours["B"], adapter.factors["down_proj"]["B"] * 5.0)
    np.testing.assert_array_equal(ours["A"], adapter.factors["down_proj"]["A"])


def test_an_adapter_is_a_pytree(adapter):
    doubled = jax.jit(lambda a: jax.tree.map(lambda x: x * 2, a))(adapter)
    assert (doubled.scale, doubled.target_name) == (2.5, "tiny")
    np.testing.assert_array_equal(doubled.ranks, adapter.ranks * 2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_save_and_load(adapter, dtype, tmp_path):
    import dataclasses

    adapter = dataclasses.replace(adapter, factors=jax.tree.map(lambda a: a.astype(dtype), adapter.factors))
    adapter.save(tmp_path / "a")
    again = Adapter.load(tmp_path / "a", target_hash="ab" * 32)
    assert (again.scale, again.target_name, again.target_hash) == (2.5, "tiny", "ab" * 32)
    jax.tree.map(np.testing.assert_array_equal, adapter.factors, again.factors)
    assert again.factors["down_proj"]["A"].dtype == dtype
    description = json.loads((tmp_path / "a" / "adapter.json").read_text())
    assert description["target"] == {"name": "tiny", "weights_hash": "ab" * 32}


def test_files_that_cannot_be_used(adapter, tmp_path):
    with pytest.raises(UserError, match="holds no adapter"):
        Adapter.load(tmp_path / "nothing")
    adapter.save(tmp_path / "a")
    with pytest.raises(UserError, match="made for tiny"):
        Adapter.load(tmp_path / "a", target_hash="cd" * 32)
    tensors = tmp_path / "a" / "adapter.safetensors"
    whole = tensors.read_bytes()
    for part in (0, 7, len(whole) // 2, len(whole) - 1):
        tensors.write_bytes(whole[:part])
        with pytest.raises(UserError, match="damaged"):
            Adapter.load(tmp_path / "a")
    tensors.write_bytes(whole)
    description = tmp_path / "a" / "adapter.json"
    for text in ("", "{", "[]", '{"format": "other"}', '{"format": "d2l-adapter-1"}'):
        description.write_text(text)
        with pytest.raises(UserError, match="damaged|format"):
            Adapter.load(tmp_path / "a")


def test_nan_in_a_stored_adapter_is_refused(adapter, tmp_path):
    import dataclasses

    broken = jax.tree.map(lambda a: a.at[0, 0, 0, 0].set(jnp.nan), adapter.factors)
    dataclasses.replace(adapter, factors=broken).save(tmp_path / "a")
    with pytest.raises(UserError, match="NaN"):
        Adapter.load(tmp_path / "a")


def test_a_failed_save_leaves_the_earlier_adapter_whole(adapter, tmp_path, monkeypatch):
    adapter.save(tmp_path / "a")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(UserError, match="No space left"):
        adapter.scaled(9).save(tmp_path / "a")
    monkeypatch.undo()
    assert Adapter.load(tmp_path / "a").scale == 2.5
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
