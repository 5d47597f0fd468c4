"""Products of narrow numbers with float32 sums."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def float32_product(dot: Callable, a: jax.Array, b: jax.Array) -> jax.Array:
    """`dot(a, b, dtype)` with float32 sums and a float32 result.

    The backward pass multiplies in the dtype of a and b, where JAX alone would widen them to that of the result's
    gradient, at half the rate or less.

    Args:
      dot: a product of two arrays of one dtype, and the dtype of its sums (None: that of the arrays).
    """
    if a.dtype == jnp.float32:
        return dot(a, b, None)

    @jax.custom_vjp
    def product(a, b):
        return dot(a, b, jnp.float32)

    def backward(saved, gradient):
        _, vjp = jax.vjp(lambda a, b: dot(a, b, None), *saved)
        return vjp(gradient.astype(a.dtype))

    product.defvjp(lambda a, b: (product(a, b), (a, b)), backward)
    return product(a, b)
