"""Adapter rows that are copies of what stands in the document (not in the paper).

Every row points at tokens of its chunk, twice: where it points first, A gets the input that its module has there, so
that it answers to what the target thinks at that place; B gets the embedding of the token after that, and of the token
it points at second. A head has to learn a vector for each word that it is to say; a copy says those it has never seen.

Letters: N rows of context tokens, P chunks packed in a row, L target layers, M target modules, r rank, T tokens, F
feature width, Z latent width, D hidden, S width of a pointer.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from d2l.hypernet.config import HypernetConfig

RMS_EPS = 1e-6
A_START, B_START = 0.02, 4e-4  # about what rows of a trained hypernetwork weigh for each of their numbers
Sources = Mapping[str, Any]


class Copies(nnx.Module):
    """Pointers, and how strong what they point at is in each number of a row."""

    def __init__(self, config: HypernetConfig, rngs: nnx.Rngs):
        L, r, S = config.num_layers, config.rank, config.copy_size
        F, Z = config.feature_size, config.latent_size
        sizes = zip(config.target_modules, config.d_in, config.d_out, strict=True)
        self.config = config
        self.query = nnx.Param(Z**-0.5 * jax.random.normal(rngs.params(), (2, Z, S)))
        self.key = nnx.Param(F**-0.5 * jax.random.normal(rngs.params(), (2, F, S)))
        gains = {name: {"A": (i, A_START), "next": (o, 1.0), "here": (o, 1.0)} for name, i, o in sizes}
        self.gain = nnx.Dict(
            {
                name: nnx.Dict(
                    {key: nnx.Param(jnp.full((L, r, d), jnp.float32(start))) for key, (d, start) in parts.items()}
                )
                for name, parts in gains.items()
            }
        )

    def __call__(
        self, e_CqZ: jax.Array, features_NTF: jax.Array, mask_NPT: jax.Array, sources: Sources
    ) -> dict[str, dict[str, jax.Array]]:
        """Copies for the A and B rows of C = N * P chunks, without `scaler_copy`.

        Args:
          e_CqZ: output-query embeddings, q = L * M * r.
          mask_NPT: bool, the tokens of each chunk. Its first token is never pointed at: every text begins with it.
          sources: as `read_context` returns them.

        Returns:
          `{module: {"A": [C, L, r, d_in], "B": [C, L, r, d_out]}}`.
        """
        c = self.config
        (N, P, T), (L, M, r) = mask_NPT.shape, (c.num_layers, c.num_modules, c.rank)
        dtype = features_NTF.dtype
        q_NPsqS = jnp.einsum("cqz,hzs->chqs", e_CqZ, self.query[...]).reshape(N, P, 2, -1, c.copy_size)
        k_NTsS = jnp.einsum("ntf,hfs->nths", features_NTF, self.key[...])
        logits = jnp.einsum("nphqs,nths->nphqt", q_NPsqS, k_NTsS, preferred_element_type=jnp.float32)
        after_NPT = mask_NPT & jnp.pad(mask_NPT[..., :-1], ((0, 0), (0, 0), (1, 0)))
        before_NPT = mask_NPT & jnp.pad(mask_NPT[..., 1:], ((0, 0), (0, 0), (0, 1)))
        logits = jnp.where(after_NPT[:, :, None, None], logits * c.copy_size**-0.5, -jnp.inf)
        # One logit of 0 more: a row may point at nothing.
        top = jax.lax.stop_gradient(jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), 0.0))
        weights = jnp.exp(logits - top)
        weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + jnp.exp(-top))
        weights = weights.reshape(N, P, 2, L, M, r, T).astype(dtype)

        here_NTD = sources["tokens"]
        next_NTD = jnp.pad(here_NTD[:, 1:], ((0, 0), (0, 1), (0, 0)))
        copies = {}
        for m, name in enumerate(c.target_modules):
            first, second = weights[:, :, 0, :, m], weights[:, :, 1, :, m]
            gain = {key: a[...][None, None].astype(dtype) for key, a in self.gain[name].items()}
            A = jnp.einsum("nplrt,lnti->nplri", first, sources["inputs"][name])
            B_next = jnp.einsum("nplrt,ntd->nplrd", jnp.where(before_NPT[:, :, None, None], first, 0), next_NTD)
            B_here = jnp.einsum("nplrt,ntd->nplrd", second, here_NTD)
            B = B_next * gain["next"] + B_here * gain["here"]
            copies[name] = {
                "A": (A * gain["A"]).reshape(N * P, L, r, -1),
                "B": B.reshape(N * P, L, r, -1),
            }
        return copies


def unit_rms(x: jax.Array) -> jax.Array:
    """x with a root mean square of 1 over its last axis, in its own dtype."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + RMS_EPS)).astype(x.dtype)
