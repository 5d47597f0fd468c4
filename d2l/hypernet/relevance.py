"""Which chunks of a document will be asked about, as the features tell (not in the paper).

A document of forty windows keeps a few chunks. The loudest ones (`adapter.loudness`) are mostly those with something to
say, but nothing in training asks for that, and it takes a whole pass of the hypernetwork to know. This is a direction
in the features instead, and a chunk is as relevant as its most relevant tokens. It is trained by itself on what
answers quote (`d2l/train/relevance.py`).

Letters: N rows of context tokens, P chunks packed in a row, T tokens, F feature width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

BIAS_START = -4.0  # some fifty tokens of logit 0 come to even odds


class Relevance(nnx.Module):
    """log sum_t exp(w f_t) + b over the tokens t of a chunk: the logit of the share of an answer that stands in it."""

    def __init__(self, feature_size: int):
        self.weight = nnx.Param(jnp.zeros(feature_size))
        self.bias = nnx.Param(jnp.full((), jnp.float32(BIAS_START)))

    def __call__(self, features: jax.Array, mask_NPT: jax.Array) -> jax.Array:
        """Logits of every chunk, float32 `[N * P]`, of no meaning where a chunk has no token.

        Args:
          features: `[N, T, F]`, or `[N, L, T, F]` for per-layer activations, of which the last counts.
          mask_NPT: bool, True at the tokens of a chunk.
        """
        features_NTF = features if features.ndim == 3 else features[:, -1]
        logit_NT = features_NTF.astype(jnp.float32) @ self.weight[...].astype(jnp.float32)
        logit_NPT = jnp.where(mask_NPT, logit_NT[:, None], jnp.finfo(jnp.float32).min)
        return (jax.nn.logsumexp(logit_NPT, axis=-1) + self.bias[...].astype(jnp.float32)).reshape(-1)
