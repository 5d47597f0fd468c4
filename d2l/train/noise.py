"""How keys of a memory differ between a document and an answer, measured on training data before the first update.

What a memory knows of this noise is a covariance (`noise_maps`), which forward passes of the frozen target tell at once
and gradients find slowly. Letters as in `d2l/hypernet/memory.py`; R response tokens, K chunks of a pack.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from d2l.adapter import Factors
from d2l.data.pack import Batch
from d2l.hypernet.config import MEMORY_MODULE, HypernetConfig
from d2l.hypernet.features import read_context
from d2l.hypernet.hypernet import Hypernet, abstract_hypernet
from d2l.hypernet.memory import LEAST, Places, noise_maps
from d2l.target.config import TargetConfig
from d2l.target.decoder import Decoder, abstract_decoder
from d2l.target.factors import memory_name
from d2l.train.step import StepConfig, chunk_mask, response_contexts

BATCHES = 100


def with_noise(
    params: Any, frozen: Any, batches: Iterable[Batch], hyper: HypernetConfig, target: TargetConfig, step: StepConfig
) -> Any:
    """The parameters with the `noise_in` and `noise_out` that batches of the step tell."""

    @jax.jit
    def of_batch(params: Any, frozen: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        params = jax.tree.map(lambda a: a.astype(jnp.dtype(step.dtype)), params)
        hypernet = nnx.merge(abstract_hypernet(hyper)[0], params)
        decoder = nnx.merge(abstract_decoder(target)[0], frozen)
        groups = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), batch)
        sums = jax.lax.map(lambda group: noise_moments(hypernet, decoder, group, step.row_chunks), groups)
        return jax.tree.map(lambda a: jnp.sum(a, axis=0), sums)

    sums = None
    for batch in batches:
        found = of_batch(params, frozen, batch)
        sums = found if sums is None else jax.tree.map(jnp.add, sums, found)
    moments_nii, pairs = sums
    maps = noise_maps(moments_nii / jnp.maximum(pairs, 1.0), hyper.memory_noise)
    both = {"noise_in": maps, "noise_out": jnp.copy(maps)}  # of buffers of their own: a step gives its state away
    return params | {"memory": dict(params["memory"]) | both}


class Met(NamedTuple):
    """Tokens of answers and those of their documents; n memory layers, M = K m places of the chunks' tokens.

    Attributes:
      keys: of chunks, as `Memory` returns them.
      x_nRi: inputs of the memory's layers at response tokens, of length 1.
      own_RM: whether the place is one of the answer's own document.
      fits_RM: whether it also says the answer's word: as its next one, or as its second next.
    """

    keys: Factors
    x_nRi: jax.Array
    own_RM: jax.Array
    fits_RM: jax.Array


def met(hypernet: Hypernet, decoder: Decoder, group: Batch, row_chunks: int) -> Met:
    """What the answers of one group meet again of their documents."""
    hyper = hypernet.config
    m = hyper.memory_tokens

    def read(prompts: str) -> tuple[jax.Array, dict[str, Any]]:
        place = {"positions_NT": group[f"{prompts}_positions"], "segments_NT": group[f"{prompts}_segments"]}
        features, sources = read_context(decoder, hyper, group[f"{prompts}_tokens"], **place)
        return features, sources["memory"]

    features, memory = read("ctx")
    mask_NPS = chunk_mask(group, row_chunks)
    keys = hypernet.memory(features, mask_NPS, memory, group["chunk_place"])
    row_R, index_R = group["response_row"], group["response_index"]
    x_nRi = read("query")[1]["inputs"][:, row_R, index_R].astype(jnp.float32)
    x_nRi = x_nRi / jnp.maximum(jnp.linalg.norm(x_nRi, axis=-1, keepdims=True), LEAST)

    places = Places.of(mask_NPS, group["chunk_place"], m)
    context_R = response_contexts(group)
    same_RM = False
    for shift in (1, 2):
        word_Km = jnp.where(places.says(hyper.turn_tokens, shift), places.take(group["ctx_tokens"], shift), -1)
        same_RM |= group["response_tokens"][:, None] == word_Km.reshape(1, -1)
    own_RM = context_R[:, None] == jnp.repeat(group["chunk_context"], m)[None]
    own_RM &= (group["response_weight"] > 0)[:, None]
    return Met(keys, x_nRi, own_RM, same_RM & own_RM)


def noise_moments(hypernet: Hypernet, decoder: Decoder, group: Batch, row_chunks: int) -> tuple[jax.Array, jax.Array]:
    """Sums of e e^T `[n, i, i]` over pairs of a response token and a token of its document, and the number of pairs.

    Both say the same word (`Met.fits_RM`); of several tokens of a document it is the one whose keys are nearest in all
    layers together. e is the document's key less the response's, each of length 1, in the memory's `metric`.
    """
    keys, x_nRi, _, fits_RM = met(hypernet, decoder, group, row_chunks)
    names = [memory_name(MEMORY_MODULE, layer) for layer in hypernet.config.memory_layers]
    k_nMi = jnp.stack([keys[name]["A"].astype(jnp.float32).reshape(-1, keys[name]["A"].shape[-1]) for name in names])
    near_RM = jnp.where(fits_RM, jnp.einsum("nri,nmi->rm", x_nRi, k_nMi), -jnp.inf)
    pair_R, found_R = jnp.argmax(near_RM, axis=1), jnp.any(fits_RM, axis=1)
    e_nRi = jnp.where(found_R[None, :, None], jnp.take(k_nMi, pair_R, axis=1) - x_nRi, 0.0)
    e_nRi = e_nRi * jnp.exp(hypernet.memory.metric[...].astype(jnp.float32))[:, None]
    return jnp.einsum("nri,nrj->nij", e_nRi, e_nRi), jnp.sum(found_R, dtype=jnp.float32)
