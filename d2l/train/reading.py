"""How a memory is read, trained by itself: a token of an answer shall find the rows of its document that say its word.

The target's blocks above the last memory layer take no part, so that with a memory in layer 1 an update costs a
fraction of one of the distillation, which only sees through thirty blocks which rows were missed. Letters as in
`d2l/train/noise.py`; C contexts of a group.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from d2l.adapter import compose
from d2l.data.pack import Batch
from d2l.hypernet.config import MEMORY_MODULE, HypernetConfig
from d2l.hypernet.hypernet import Hypernet, abstract_hypernet
from d2l.target.config import TargetConfig
from d2l.target.decoder import Decoder, abstract_decoder
from d2l.target.factors import memory_name
from d2l.train.noise import met
from d2l.train.step import StepConfig

TRAINED = ("metric", "noise_in", "noise_out", "log_ridge")
RATE = 3e-3
REPORTED = 20
# A row answers its own key with about 1: so much of this that one of hundreds stands out in a softmax.
SHARPNESS = 12.0


def with_reading(
    params: Any,
    frozen: Any,
    batches: Iterable[Batch],
    count: int,
    hyper: HypernetConfig,
    target: TargetConfig,
    step: StepConfig,
    report: Callable[[int, float, float], None],
) -> Any:
    """The parameters after an update (Adam, cosine) on each of `count` batches of the step.

    Args:
      report: is told the number of every `REPORTED`th update, its loss and the share of tokens that were found.
    """
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(RATE, count)))

    def mean_loss(trained: Any, params: Any, frozen: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        hypernet = nnx.merge(abstract_hypernet(hyper)[0], params | {"memory": dict(params["memory"]) | trained})
        decoder = nnx.merge(abstract_decoder(target)[0], frozen)
        groups = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), batch)
        sums = jax.lax.map(lambda group: reading_sums(hypernet, decoder, group, step), groups)
        tokens = jnp.maximum(jnp.sum(sums.pop("tokens")), 1.0)
        means = jax.tree.map(lambda a: jnp.sum(a) / tokens, sums)
        return means["loss"], means

    @jax.jit
    def update(trained: Any, state: Any, params: Any, frozen: Any, batch: Batch) -> tuple[Any, Any, dict]:
        grads, means = jax.grad(mean_loss, has_aux=True)(trained, params, frozen, batch)
        with jax.numpy_dtype_promotion("standard"):  # optax adds integers and floats
            changes, state = optimizer.update(grads, state)
        return optax.apply_updates(trained, changes), state, means

    trained = {name: params["memory"][name] for name in TRAINED if name in params["memory"]}
    state = optimizer.init(trained)
    for number, batch in enumerate(batches, 1):
        trained, state, means = update(trained, state, params, frozen, batch)
        if number % REPORTED == 0 or number in (1, count):
            report(number, float(means["loss"]), float(means["found"]))
    return params | {"memory": dict(params["memory"]) | trained}


def reading_sums(hypernet: Hypernet, decoder: Decoder, group: Batch, step: StepConfig) -> dict[str, jax.Array]:
    """Over the response tokens of a group whose word is in their document: `loss`, `found` and `tokens`, float32.

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
    return {"loss": sum(losses) / count, "found": sum(found) / count, "tokens": jnp.sum(tokens_R, dtype=jnp.float32)}
