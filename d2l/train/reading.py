"""How a memory is read, trained by itself: a token of an answer shall find the rows of its document that say its word.

The target's blocks above the last memory layer take no part, so that with a memory in layer 1 an update costs a
fraction of one of the distillation, which only sees through thirty blocks which rows were missed. Letters as in
`d2l/train/noise.py`; C contexts of a group.
"""

import jax
import jax.numpy as jnp

from d2l.adapter import compose
from d2l.data.pack import Batch
from d2l.hypernet.config import MEMORY_MODULE
from d2l.hypernet.hypernet import Hypernet
from d2l.target.decoder import Decoder
from d2l.target.factors import memory_name
from d2l.train.noise import met
from d2l.train.step import StepConfig

TRAINED = ("metric", "noise_in", "noise_out", "log_ridge")
# A row answers its own key with about 1: so much of this that one of hundreds stands out in a softmax.
SHARPNESS = 12.0


def reading_sums(hypernet: Hypernet, decoder: Decoder, group: Batch, step: StepConfig) -> dict[str, jax.Array]:
    """Over the response tokens of a group whose word is in their document: `loss`, `found` and `count`, float32.

    The loss is -log of the share that rows which say the word have in a softmax over all rows of the document, mean
    over memory layers; `found` counts where the row that answers most is one of them.
    """
    hyper = hypernet.config
    keys, x_nRi, own_RM, fits_RM = met(hypernet, decoder, group, step.row_chunks)
    context_K, slot_K = group["chunk_context"], group["chunk_slot"]
    place = {"num_contexts": len(group["context_weight"]), "max_chunks": step.max_chunks, "bias": None}
    solved = hypernet.solve(compose(keys, context_K, slot_K, **place)[0])
    rows_Km = slot_K[:, None] * hyper.memory_tokens + jnp.arange(hyper.memory_tokens)[None]
    tokens_R = jnp.any(fits_RM, axis=1)

    def of_layer(j: int, layer: int) -> tuple[jax.Array, jax.Array]:
        a_Kmi = solved[memory_name(MEMORY_MODULE, layer)]["A"][0][context_K[:, None], rows_Km]
        score_RM = x_nRi[j] @ a_Kmi.reshape(-1, a_Kmi.shape[-1]).astype(jnp.float32).T
        fits, own = (jnp.where(mask_RM, SHARPNESS * score_RM, -jnp.inf) for mask_RM in (fits_RM, own_RM))
        safe_R1 = tokens_R[:, None]
        share_R = jax.nn.logsumexp(jnp.where(safe_R1, own, 0.0), axis=1)
        share_R -= jax.nn.logsumexp(jnp.where(safe_R1, fits, 0.0), axis=1)
        found_R = jnp.max(fits, axis=1) >= jnp.max(own, axis=1)
        return jnp.sum(jnp.where(tokens_R, share_R, 0.0)), jnp.sum(found_R & tokens_R, dtype=jnp.float32)

    losses, found = zip(*(of_layer(j, layer) for j, layer in enumerate(hyper.memory_layers)), strict=True)
    count = len(losses)
    return {"loss": sum(losses) / count, "found": sum(found) / count, "count": jnp.sum(tokens_R, dtype=jnp.float32)}
