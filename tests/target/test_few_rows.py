"""The CPU's product of few rows: what it is, beside others, in gradients, in maps, and from many threads."""

import concurrent.futures
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2l.target.few_rows import MOST_ROWS, few_rows_product, usable


def arrays(rows, out, size, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((rows, size), (out, size)))


def exact(x, w):
    return np.asarray(x, np.float64) @ np.asarray(w, np.float64).T


@pytest.mark.parametrize(("rows", "out", "size"), [(1, 1, 1), (2, 5, 7), (3, 100, 33), (7, 1536, 576), (16, 49, 4100)])
def test_it_is_the_product_and_a_row_is_the_same_alone(rows, out, size):
    x, w = arrays(rows, out, size)
    y = np.asarray(jax.jit(few_rows_product)(x, w))
    np.testing.assert_allclose(y, exact(x, w), atol=1e-6 * size)
    alone = [np.asarray(few_rows_product(x[n : n + 1], w))[0] for n in range(rows)]
    np.testing.assert_array_equal(y, np.stack(alone))


def test_gradients_and_maps():
    x, w = arrays(2, 9, 40)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(2, 9)), jnp.float32)
    ours = jax.grad(lambda x, w: jnp.sum(weight * few_rows_product(x, w)), (0, 1))(x, w)
    plain = jax.grad(lambda x, w: jnp.sum(weight * jnp.einsum("ni,oi->no", x, w).astype(jnp.float32)), (0, 1))(x, w)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=0.02, atol=0.02)
    many_x, many_w = jnp.stack([x, 2 * x]), jnp.stack([w, w])
    np.testing.assert_allclose(jax.vmap(few_rows_product)(many_x, many_w)[1], 2 * few_rows_product(x, w))


def test_what_it_takes():
    x, w = arrays(MOST_ROWS, 4, 8)
    assert usable(x, w) and usable(x[None], w)
    assert not usable(x.astype(jnp.float32), w) and not usable(x, w.astype(jnp.float32))
    assert not usable(jnp.concatenate([x, x]), w) and not usable(x[:, :0], w[:, :0])


def test_many_threads_at_once():
    function = jax.jit(few_rows_product)
    cases = [arrays(1 + seed % 4, 2000, 300, seed) for seed in range(8)]
    wanted = [exact(*case) for case in cases]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            for y, right in zip(pool.map(lambda case: np.asarray(function(*case)), cases), wanted, strict=True):
                np.testing.assert_allclose(y, right, atol=1e-3)


def test_one_thread_is_enough():
    code = (
        "import jax, jax.numpy as jnp; from d2l.target.few_rows import few_rows_product as f; "
        "print(float(jax.jit(f)(jnp.ones((1, 64), jnp.bfloat16), jnp.ones((5000, 64), jnp.bfloat16)).sum()))"
    )
    flags = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "NPROC": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=flags, capture_output=True, text=True, timeout=120)
    assert done.stdout == "320000.0\n", done.stderr
