"""Which chunks of a document will be asked about, trained by itself on what answers quote of them.

A chunk is as relevant as the largest share of an answer that stands in it word for word; so nothing but the data of
the distillation is needed. Letters as in `d2l/hypernet/relevance.py`; K chunks of a group, R response tokens.
"""

import jax
import jax.numpy as jnp
import optax

from d2l.data.pack import Batch
from d2l.hypernet.features import read_context
from d2l.hypernet.hypernet import Hypernet
from d2l.target.decoder import Decoder
from d2l.train.step import StepConfig, chunk_mask, response_contexts

# Tokens in a row that count as quoted: single words of an answer stand in any text.
QUOTED = 3
TRAINED = ("weight", "bias")


def relevance_sums(hypernet: Hypernet, decoder: Decoder, group: Batch, step: StepConfig) -> dict[str, jax.Array]:
    """Over the chunks of a group: `loss`, `error` and `count`, float32.

    The loss is the cross-entropy of each chunk's relevance with what stands in it (`quoted_shares`), the error how far
    they are apart.
    """
    place = {"positions_NT": group["ctx_positions"], "segments_NT": group["ctx_segments"]}
    features, _ = read_context(decoder, hypernet.config, group["ctx_tokens"], **place)
    mask_NPS = chunk_mask(group, step.row_chunks)
    logit_K = jnp.take(hypernet.relevance(features, mask_NPS), group["chunk_place"])
    share_K, real_K = quoted_shares(group, step.row_chunks), group["chunk_context"] >= 0

    def total(a_K: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(real_K, a_K, 0.0))

    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
        loss_K = optax.sigmoid_binary_cross_entropy(logit_K, share_K)
    error_K = jnp.abs(jax.nn.sigmoid(logit_K) - share_K)
    return {"loss": total(loss_K), "error": total(error_K), "count": jnp.sum(real_K, dtype=jnp.float32)}


def quoted_shares(group: Batch, row_chunks: int) -> jax.Array:
    """The largest share of an answer of its document that stands in each chunk, float32 `[K]`.

    The share is that of the answer's runs of `QUOTED` tokens (ROUGE-3 recall, the end of turn being one of them);
    answers that are shorter have none.
    """
    query_R, token_R = group["response_query"], group["response_tokens"]
    whole_R = group["response_weight"] > 0
    match_RNS = True
    for k in range(QUOTED):
        whole_R &= (jnp.roll(query_R, -k) == query_R) & (jnp.roll(group["response_weight"], -k) > 0)
        later = {name: jnp.roll(group[f"ctx_{name}"], -k, axis=1) for name in ("tokens", "segments", "positions")}
        inside_NS = (later["segments"] == group["ctx_segments"]) & (later["positions"] == group["ctx_positions"] + k)
        match_RNS &= (jnp.roll(token_R, -k)[:, None, None] == later["tokens"][None]) & inside_NS[None]
    mask_NPS = chunk_mask(group, row_chunks).astype(jnp.float32)
    found_RNP = jnp.einsum("rns,nps->rnp", match_RNS.astype(jnp.float32), mask_NPS) > 0
    found_RK = jnp.take(found_RNP.reshape(len(token_R), -1), group["chunk_place"], axis=1)
    found_RK &= (response_contexts(group)[:, None] == group["chunk_context"][None]) & whole_R[:, None]
    same_RR = ((query_R[:, None] == query_R[None]) & whole_R[None]).astype(jnp.float32)
    share_RK = same_RR @ found_RK.astype(jnp.float32) / jnp.maximum(jnp.sum(same_RR, axis=1, keepdims=True), 1.0)
    return jnp.max(share_RK, axis=0)
