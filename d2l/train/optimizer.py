"""AdamW per parameter group: own clipping, own learning rate, stages with warm-up and cosine."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from d2l.errors import UserError

# Learned vectors, norms and biases are not decayed.
DECAYED = ("proj", "head", "w1", "w2")
SPARED = ("bias_", "scaler_", "gate", "copies", "memory")  # groups of learned vectors


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (SPEC 5).

    Attributes:
      clip: largest gradient norm of a parameter group; a group is a top-level entry of the parameters. One group with a
        large gradient (`scaler_B`) then does not shrink the steps of the others.
      multipliers: learning rate of a group relative to the others.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 1.0
    multipliers: tuple[tuple[str, float], ...] = ()


def stage_schedule(stages: list[dict[str, Any]]) -> optax.Schedule:
    """Learning rate over all stages: each one warms up over its `warmup` steps to `lr`, then follows a cosine to
    `final * lr` at its end."""
    pieces, ends = [], []
    for stage in stages:
        if not 0 <= stage["warmup"] < stage["steps"]:
            raise UserError(
                f"a stage of {stage['steps']} steps cannot warm up over {stage['warmup']}: set warmup lower."
            )
        pieces.append(
            optax.warmup_cosine_decay_schedule(
                0.0 if stage["warmup"] else stage["lr"],
                stage["lr"],
                stage["warmup"],
                stage["steps"],
                stage["final"] * stage["lr"],
            )
        )
        ends.append((ends[-1] if ends else 0) + stage["steps"])
    return optax.join_schedules(pieces, ends[:-1])


def learning_rates(schedule: optax.Schedule, total: int) -> np.ndarray:
    """The learning rate of every update, float32 `[total]`."""
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
        return np.asarray(jax.jit(jax.vmap(schedule))(np.arange(total)))


def make_optimizer(
    config: OptimizerConfig,
    schedule: optax.Schedule,
    params: Any,
    *,
    project: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """AdamW with `config.clip` per group.

    Args:
      project: a linear projection of the parameters that every update stays within.

    Raises:
      UserError: `multipliers` names a group that does not exist.
    """
    multipliers = dict(config.multipliers)
    if unknown := set(multipliers) - set(params):
        raise UserError(f"lr multipliers name {sorted(unknown)}, the parameter groups are {sorted(params)}.")

    def decayed(tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                leaf.ndim > 1 and str(path[-1].key).endswith(DECAYED) and not str(path[0].key).startswith(SPARED)
            ),
            tree,
        )

    def group(name):
        factor = multipliers.get(name, 1.0)
        return optax.chain(
            optax.clip_by_global_norm(config.clip),
            optax.adamw(
                lambda count: factor * schedule(count),
                b1=config.b1,
                b2=config.b2,
                eps=config.eps,
                weight_decay=config.weight_decay,
                mask=decayed,
            ),
        )

    labels = {name: jax.tree.map(lambda _, name=name: name, part) for name, part in params.items()}
    optimizer = optax.partition({name: group(name) for name in params}, labels)

    def update(grads, state, params):
        with jax.numpy_dtype_promotion("standard"):  # optax adds integers and floats, also where all else is strict
            updates, state = optimizer.update(grads, state, params)
        return (updates if project is None else project(updates)), state

    return optax.GradientTransformation(optimizer.init, update)
