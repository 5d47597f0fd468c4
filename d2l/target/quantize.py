"""A frozen target in eight or four bits: weights are stored narrow and widened layer by layer, where they run."""

from typing import Any

import jax
import jax.numpy as jnp

from d2l import mesh
from d2l.errors import UserError

KINDS = ("int8", "nf4")
TILE = 64  # inputs of a matrix row that share a scale


def quantize_target(params: Any, kind: str) -> Any:
    """Stacked decoder parameters with every matrix of the layers as a `qwix.QArray`; the others stay as they are.

    Args:
      kind: `int8`, or `nf4` (the 4-bit levels of QLoRA). Scales have the dtype of the weights.

    Raises:
      UserError: an unknown kind, or a matrix whose inputs are not whole tiles.
    """
    if kind not in KINDS:
        raise UserError(f"quantize is {kind!r}: give one of {', '.join(KINDS)}.")
    import qwix  # an extra

    def quantize(path, w):
        if w.ndim < 3:  # norms
            return w
        if w.shape[-1] % TILE:
            raise UserError(
                f"{jax.tree_util.keystr(path, simple=True, separator='.')} has {w.shape[-1]} inputs, {kind} needs a "
                f"multiple of {TILE}: leave this target as it is."
            )
        tiles = {w.ndim - 1: TILE}
        array = qwix.quantize(w.astype(jnp.float32), kind, channelwise_axes=range(w.ndim - 1), tiled_axes=tiles)
        return array.replace(scale=array.scale.astype(w.dtype))

    return params | {"layers": jax.tree_util.tree_map_with_path(quantize, params["layers"])}


def widen(params: Any) -> Any:
    """Parameters of a layer with quantised matrices in the dtype of their scales."""

    def is_quantized(leaf):
        return hasattr(leaf, "qvalue")

    return jax.tree.map(lambda a: _widen(a) if is_quantized(a) else a, params, is_leaf=is_quantized)


def _widen(array: Any) -> jax.Array:
    """`qwix.dequantize`, which flattens four-bit arrays, also where an axis is split over chips."""
    import qwix

    values, scale = array.qvalue, array.scale
    if array.qtype == "nf4":
        ones = jnp.ones((1, 1), scale.dtype)
        (levels,) = qwix.dequantize(array.replace(qvalue=jnp.arange(16, dtype=values.dtype)[None], scale=ones))
        values = mesh.take(levels, values.astype(jnp.int32))
    tiles = values.astype(scale.dtype).reshape(*values.shape[:-1], -1, TILE) * scale[..., None]
    return tiles.reshape(values.shape)
