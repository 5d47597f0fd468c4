"""A KV cache that stands before a prompt, in place of the tokens that it was made of.

Letters: K key heads, S cache slots, H head_dim, T prompt tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from d2l.target.generate import bucket


class KVCache(NamedTuple):
    """Keys and values of one row.

    Attributes:
      layers: `{"k": [1, K, S, H], "v": [1, K, H, S]}` of every layer; slots past `length` are free.
      length: slots in use, and the RoPE position of the token that comes next.
    """

    layers: list[dict[str, jax.Array]]
    length: int

    def with_room(self, tokens: int) -> list[dict[str, jax.Array]]:
        """The layers with room for so many tokens more."""
        more = bucket(self.length + tokens, 32) - self.layers[0]["k"].shape[2]
        if more <= 0:
            return jax.tree.map(jnp.copy, self.layers)  # decoding donates its cache
        return [
            {
                "k": jnp.pad(layer["k"], ((0, 0), (0, 0), (0, more), (0, 0))),
                "v": jnp.pad(layer["v"], ((0, 0), (0, 0), (0, 0), (0, more))),
            }
            for layer in self.layers
        ]


def laid_out(ids: Sequence[int], cache: KVCache | None) -> tuple[np.ndarray, np.ndarray]:
    """A prompt in a bucket: tokens and positions int32 `[1, T]`."""
    width = bucket(len(ids), 32)
    tokens = np.zeros((1, width), np.int32)
    tokens[0, : len(ids)] = ids
    return tokens, np.arange(width, dtype=np.int32)[None] + np.int32(0 if cache is None else cache.length)
