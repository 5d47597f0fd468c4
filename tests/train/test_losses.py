"""Losses against their definitions in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2l.train import losses

N, D, V = 21, 6, 40


@pytest.fixture
def head():
    return jax.random.normal(jax.random.key(0), (V, D))


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (N, D))


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_cross_entropy(head, x):
    tokens = jax.random.randint(jax.random.key(2), (N,), 0, V)
    ce, hit = losses.cross_entropy(lambda x: x @ head.T, x, tokens)
    logp = log_softmax(x @ head.T)
    np.testing.assert_allclose(ce, -logp[np.arange(N), tokens], rtol=1e-5)
    np.testing.assert_array_equal(hit, logp.argmax(-1) == np.asarray(tokens))


def test_kl_is_over_the_teachers_top_16_not_renormalised(head, x):
    teacher = jax.random.normal(jax.random.key(3), (N, D))
    top = losses.teacher_top_k(lambda x: x @ head.T, teacher)
    got = losses.kl(lambda x: x @ head.T, x, *top)
    logp, logq = log_softmax(teacher @ head.T), log_softmax(x @ head.T)
    order = np.argsort(-logp, axis=-1)[:, :16]
    p = np.exp(np.take_along_axis(logp, order, -1))
    assert (p.sum(-1) < 1).all()
    np.testing.assert_allclose(got, -(p * np.take_along_axis(logq, order, -1)).sum(-1), rtol=1e-4)
    # With the student equal to the teacher the loss is as low as it gets.
    assert (np.asarray(losses.kl(lambda x: x @ head.T, teacher, *top)) <= np.asarray(got) + 1e-6).all()


def test_blocks_of_rows_equal_one_block(head, x, monkeypatch):
    tokens = jax.random.randint(jax.random.key(2), (N,), 0, V)

    def total(x):
        top = losses.teacher_top_k(lambda x: x @ head.T, x[::-1])
        ce, _ = losses.cross_entropy(lambda x: x @ head.T, x, tokens)
        return jnp.sum(jnp.sin(ce)) + jnp.sum(jnp.cos(losses.kl(lambda x: x @ head.T, x, *top)))

    whole, gradient = jax.value_and_grad(total)(x)
    monkeypatch.setattr(losses, "ROWS", 4)
    blocks, again = jax.value_and_grad(total)(x)
    np.testing.assert_allclose(whole, blocks, rtol=1e-6)
    np.testing.assert_allclose(gradient, again, rtol=1e-4, atol=1e-5)


def test_l1_is_the_mean_over_modules_of_each_context():
    factors = {
        "a": {"A": jnp.full((1, 2, 2, 3), -2.0), "B": jnp.full((1, 2, 2, 5), 1.0).at[:, 1].set(3.0)},
        "b": {"A": jnp.zeros((1, 2, 2, 4)), "B": jnp.full((1, 2, 2, 1), 4.0)},
    }
    np.testing.assert_allclose(losses.l1(factors), [(2 + 1 + 0 + 4) / 2, (2 + 3 + 0 + 4) / 2])
