"""Distillation losses over the response tokens (SPEC 5), a few rows of the vocabulary at a time.

Letters: N response tokens of the batch, D hidden, V vocabulary, k teacher tokens kept.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from d2l import mesh
from d2l.adapter import Factors, has_bias

TEACHER_TOP_K = 16
ROWS = 512
LEAST_LEFT = 1e-6  # what rounding leaves of a probability that is nearly one

Unembed = Callable[[jax.Array], jax.Array]


def by_rows(function: Callable, x_ND: jax.Array, targets: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """`function(x, *targets)` over blocks of at most `ROWS` rows, recomputed in the backward pass.

    Only one block of logits `[ROWS, V]` exists at a time, in the forward and in the backward pass. The chips of the
    model axis share the rows of a block: each multiplies its own with the whole head.
    """
    N = x_ND.shape[0]
    blocks = -(-N // ROWS)
    size = -(-N // blocks // mesh.model_shards()) * mesh.model_shards()

    def fold(a):
        padded = jnp.pad(a, ((0, blocks * size - N),) + ((0, 0),) * (a.ndim - 1))
        return mesh.reshard(padded.reshape(blocks, size, *a.shape[1:]), None, mesh.MODEL, *(None,) * (a.ndim - 1))

    args = tuple(map(fold, (x_ND, *targets)))
    if blocks == 1:
        out = jax.tree.map(lambda a: a[None], function(*(a[0] for a in args)))
    else:
        out = jax.lax.map(lambda args: jax.checkpoint(function)(*args), args)

    def unfold(a):
        return mesh.reshard(a, *(None,) * a.ndim).reshape(blocks * size, *a.shape[2:])[:N]

    return jax.tree.map(unfold, out)


def cross_entropy(unembed: Unembed, x_ND: jax.Array, tokens_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-log p(token) and whether it is the likeliest, float32 `[N]` each."""

    def rows(x, tokens):
        logits = unembed(x)
        logp = jax.nn.log_softmax(logits, axis=-1)
        hit = jnp.argmax(logits, axis=-1) == tokens
        return -jnp.take_along_axis(logp, tokens[:, None], axis=-1)[:, 0], hit.astype(jnp.float32)

    return by_rows(rows, x_ND, (tokens_N,))


def teacher_top_k(unembed: Unembed, x_ND: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The teacher's likeliest tokens int32 `[N, k]` and their log-probabilities over the full vocabulary."""

    def rows(x):
        logp, tokens = jax.lax.top_k(jax.nn.log_softmax(unembed(x), axis=-1), TEACHER_TOP_K)
        return tokens, logp

    return by_rows(rows, x_ND, ())


def kl(
    unembed: Unembed,
    x_ND: jax.Array,
    teacher_tokens_Nk: jax.Array,
    teacher_logp_Nk: jax.Array,
    *,
    others: bool = False,
) -> jax.Array:
    """-sum_k p_k log q_k with the teacher's p not renormalised, float32 `[N]`: the KL up to the teacher's entropy.

    Args:
      others: all tokens that the teacher's k leave out count as one more outcome (not in the paper). Without it the
        loss is lowest where the student gives them nothing, and a teacher that is unsure leaves out a tenth.
    """

    def rows(x, tokens, logp):
        logq = jnp.take_along_axis(jax.nn.log_softmax(unembed(x), axis=-1), tokens, axis=-1)
        loss = -jnp.sum(jnp.exp(logp) * logq, axis=-1)
        return (loss - left_out(logp) * jnp.log(left_out(logq)) if others else loss,)

    return by_rows(rows, x_ND, (teacher_tokens_Nk, teacher_logp_Nk))[0]


def left_out(logp_Nk: jax.Array) -> jax.Array:
    """The probability of all other tokens, float32 `[N]`."""
    return jnp.maximum(1.0 - jnp.sum(jnp.exp(logp_Nk), axis=-1), LEAST_LEFT)


def entropy(teacher_logp_Nk: jax.Array, *, others: bool = False) -> jax.Array:
    """-sum_k p_k log p_k of the teacher's likeliest tokens, float32 `[N]`: `kl` of a student that equals it.

    Args:
      others: as in `kl`.
    """
    own = -jnp.sum(jnp.exp(teacher_logp_Nk) * teacher_logp_Nk, axis=-1)
    rest = left_out(teacher_logp_Nk)
    return own - rest * jnp.log(rest) if others else own


def l1(chunks: Factors, bias: Factors | None, context_N: jax.Array, weight_C: jax.Array, max_chunks: int) -> jax.Array:
    """Mean over modules of mean|A| + mean|B| of each composed adapter, its padding included, summed with weights.

    Args:
      chunks, bias, context_N, max_chunks: as in `adapter.compose`.
      weight_C: float32, of each context.
    """
    of_chunk_N = jnp.where(context_N < 0, 0.0, jnp.take(weight_C, context_N, mode="clip"))

    def size(name: str, key: str) -> jax.Array:
        a_NLrd = chunks[name][key]
        total = jnp.sum(of_chunk_N * jnp.sum(jnp.abs(a_NLrd), axis=(1, 2, 3), dtype=jnp.float32))
        if has_bias(name, bias):
            total += jnp.sum(weight_C) * jnp.sum(jnp.abs(bias[name][key]), dtype=jnp.float32)
        return total / ((max_chunks + has_bias(name, bias)) * a_NLrd[0].size)

    return sum(size(name, key) for name in chunks for key in ("A", "B")) / len(chunks)
