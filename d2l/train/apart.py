"""Training a part of the hypernetwork apart, with a loss of its own, before the first update of the whole."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from d2l.data.pack import Batch
from d2l.hypernet.config import HypernetConfig
from d2l.hypernet.hypernet import Hypernet, abstract_hypernet
from d2l.target.config import TargetConfig
from d2l.target.decoder import Decoder, abstract_decoder
from d2l.train.step import StepConfig

RATE = 3e-3
REPORTED = 20


def with_part(
    params: Any,
    part: str,
    names: Sequence[str],
    sums: Callable[[Hypernet, Decoder, Batch, StepConfig], dict[str, jax.Array]],
    frozen: Any,
    batches: Iterable[Batch],
    count: int,
    hyper: HypernetConfig,
    target: TargetConfig,
    step: StepConfig,
    report: Callable[[int, dict[str, float]], None],
) -> Any:
    """The parameters after an update (Adam, cosine) of one part on each of `count` batches of the step.

    Args:
      part, names: the group of parameters, and those of it that are trained, as far as there are any.
      sums: of one group of a batch: `loss`, `count` and others, each summed over `count` things.
      report: is told the number of every `REPORTED`th update and the means of `sums` in it.
    """
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(RATE, count)))

    def mean_loss(trained: Any, params: Any, frozen: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        hypernet = nnx.merge(abstract_hypernet(hyper)[0], params | {part: dict(params[part]) | trained})
        decoder = nnx.merge(abstract_decoder(target)[0], frozen)
        groups = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), batch)
        totals = jax.lax.map(lambda group: sums(hypernet, decoder, group, step), groups)
        things = jnp.maximum(jnp.sum(totals.pop("count")), 1.0)
        means = jax.tree.map(lambda a: jnp.sum(a) / things, totals)
        return means["loss"], means

    @jax.jit
    def update(trained: Any, state: Any, params: Any, frozen: Any, batch: Batch) -> tuple[Any, Any, dict]:
        grads, means = jax.grad(mean_loss, has_aux=True)(trained, params, frozen, batch)
        with jax.numpy_dtype_promotion("standard"):  # optax adds integers and floats
            changes, state = optimizer.update(grads, state)
        return optax.apply_updates(trained, changes), state, means

    trained = {name: params[part][name] for name in names if name in params[part]}
    state = optimizer.init(trained)
    for number, batch in enumerate(batches, 1):
        trained, state, means = update(trained, state, params, frozen, batch)
        if number % REPORTED == 0 or number in (1, count):
            report(number, {name: float(mean) for name, mean in means.items()})
    return params | {part: dict(params[part]) | trained}
