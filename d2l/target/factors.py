"""How an adapter's factors are laid out: those of every layer, stacked, and those that single layers have beside them.

Letters: L layers, B batch, R rank, i and o input and output width of a module.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp

Factors = dict[str, Any]


def unstack(tree: Any, count: int) -> tuple[Any, ...]:
    """Trees of one layer each, out of a tree stacked on a leading layer axis of length `count`."""
    return tuple(jax.tree.map(operator.itemgetter(i), tree) for i in range(count))


def memory_name(module: str, layer: int) -> str:
    """The key of factors that one layer alone has, beside those of every layer (leading layer axis 1)."""
    return f"{module}@{layer}"


def split_memories(adapter: Factors) -> tuple[Factors, dict[int, Factors]]:
    """An adapter's factors of all layers, and those of single layers: `{layer: {module: factors without L}}`."""
    memories: dict[int, Factors] = {}
    for name in [name for name in adapter if "@" in name]:
        module, _, layer = name.partition("@")
        memories.setdefault(int(layer), {})[module] = jax.tree.map(operator.itemgetter(0), adapter[name])
    return {name: ab for name, ab in adapter.items() if "@" not in name}, memories


def adapter_layers(adapter: Factors, count: int) -> list[Factors]:
    """A stacked adapter as unstacked layers take it: one dict a layer, a memory's rows after the others."""
    base, memories = split_memories(adapter)
    layers = [jax.tree.map(operator.itemgetter(i), base) for i in range(count)]
    for layer, modules in memories.items():
        for module, more in modules.items():
            ab = layers[layer].get(module)
            layers[layer][module] = (
                more
                if ab is None
                else {key: jnp.concatenate([ab[key], more[key].astype(ab[key].dtype)], axis=-2) for key in ("A", "B")}
            )
    return layers
