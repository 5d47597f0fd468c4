"""How an adapter's factors are applied and laid out: those of every layer, stacked, and those that single layers have.

Letters: L layers, B batch, T tokens, R rank, i and o input and output width of a module.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp

from d2l import mesh
from d2l.target import few_rows

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


def times(x_BTi: jax.Array, w_oi: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """W x with the sum in `dtype` (default: that of x)."""
    if not few_rows.usable(x_BTi, w_oi):
        return mesh.product("bti,oi->bto", x_BTi, w_oi, out=0, dtype=dtype)
    y_No = few_rows.few_rows_product(x_BTi.reshape(-1, x_BTi.shape[-1]), w_oi)
    return y_No.reshape(*x_BTi.shape[:-1], -1).astype(dtype or x_BTi.dtype)


def low_rank(x_BTi: jax.Array, ab: dict[str, jax.Array], split: str | None = None) -> jax.Array:
    """B^T (A x) of an adapter `{"A": [B, R, i], "B": [B, R, o]}` (scale folded into B).

    An adapter of batch 1 serves every row. An entry `"gate": [B, T, R]` multiplies A x. `split` is the mesh axis of the
    output.
    """
    # A is split as the input is, B as the output is: both are cut out of whole arrays, nothing is sent.
    A = mesh.reshard(ab["A"].astype(x_BTi.dtype), None, None, mesh.split_of(x_BTi, 2))
    B = mesh.reshard(ab["B"].astype(x_BTi.dtype), None, None, split)
    one = A.shape[0] == 1
    h_BTR = times(x_BTi, A[0]) if one else mesh.product("bti,bri->btr", x_BTi, A, out=1)
    if "gate" in ab:
        h_BTR = h_BTR * ab["gate"].astype(h_BTR.dtype)
    if one:
        return times(h_BTR, B[0].T)
    return mesh.product("btr,bro->bto", h_BTR, B, out=2)
