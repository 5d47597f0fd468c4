"""The device mesh, and where every array of training lives on it.

Axes: `data` splits the groups of a batch; `fsdp` splits groups too, and stores parameters in shards that are gathered
where they are used; `model` splits heads and MLP width, in storage and in compute.

All axes are explicit: an array's type names the axes that split it. Without a mesh (`jax.set_mesh` not called)
everything here that runs inside a jitted function does nothing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from d2l.errors import UserError

DATA, FSDP, MODEL = "data", "fsdp", "model"
AXES = (DATA, FSDP, MODEL)
GROUP_AXES = (DATA, FSDP)  # of a batch's groups

# The last two axes of each matrix, by the parameter's name; layers and modules are stacked in front of them. A matrix
# whose output is split over `model` is followed by one whose input is, so that one sum over chips ends the pair.
COLUMNS = (MODEL, FSDP)  # [out, in], output split
ROWS = (FSDP, MODEL)  # [out, in], input split
MATRICES = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), COLUMNS),
    **dict.fromkeys(("o_proj", "down_proj"), ROWS),
    "w1": (FSDP, MODEL),  # [in, out]
    "w2": (MODEL, FSDP),
    # Stored in shards, used whole: the output head works on a share of the rows, the hypernetwork's is a small product.
    "embed_tokens": (None, (MODEL, FSDP)),  # [vocabulary, hidden]
    "lm_head": (None, (MODEL, FSDP)),
    "head": ((MODEL, FSDP), None),  # [in, out]
}
STORED_ONLY = ("embed_tokens", "lm_head", "head")
VECTORS = {"b1": (MODEL,)}
QUANTIZED_PARTS = ("qvalue", "scale")  # of a matrix of a quantised target
# Groups of small learned arrays; replicated.
REPLICATED_GROUPS = ("bias_A", "bias_B", "scaler_A", "scaler_B", "scaler_copy", "gate", "copies", "memory", "relevance")


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a config's `mesh` section; enter it with `jax.set_mesh`.

    Args:
      sizes: devices along `data`, `fsdp` and `model`; one of them may be -1, which takes what is left. Default 1.
      devices: default all devices of all processes.

    Raises:
      UserError: an unknown axis, or sizes that do not multiply to the number of devices.
    """
    if unknown := set(sizes) - set(AXES):
        raise UserError(f"mesh has the unknown axes {sorted(unknown)}: the axes are {', '.join(AXES)}.")
    devices = jax.devices() if devices is None else devices
    shape = [sizes.get(axis, 1) for axis in AXES]
    known = math.prod(size for size in shape if size != -1)
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise UserError(f"mesh is {dict(sizes)}: give positive sizes, and -1 for at most one axis.")
    if len(devices) % known or (-1 not in shape and known != len(devices)):
        raise UserError(
            f"mesh {dict(sizes)} needs {'a multiple of ' if -1 in shape else ''}{known} devices, there are "
            f"{len(devices)}: change config.mesh."
        )
    shape = [len(devices) // known if size == -1 else size for size in shape]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Explicit,) * len(AXES), devices=devices)


def group_shards(mesh: Mesh) -> int:
    """How many parts the groups of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in GROUP_AXES)


def split_packs(packs: int, mesh: Mesh | None) -> tuple[int, int]:
    """`(accumulate, groups)` of an update over `packs` groups: at once one group for each group shard of the mesh.

    Raises:
      UserError: the mesh does not divide them; both numbers are named.
    """
    if mesh is None:
        return packs, 1
    check_divisible(mesh, groups=packs)
    return packs // group_shards(mesh), group_shards(mesh)


def check_divisible(mesh: Mesh, *, groups: int | None = None, **heads: int) -> None:
    """Raise a `UserError` naming both numbers where the mesh does not divide a batch or a model.

    Args:
      groups: packs of an update, split over `data` and `fsdp`.
      heads: what is split over `model`, by its name in the message.
    """
    if groups is not None and groups % group_shards(mesh):
        raise UserError(
            f"an update of {groups} packs cannot be split over data x fsdp = {group_shards(mesh)} devices: make "
            "config.packs a multiple of that, or change config.mesh."
        )
    for name, size in heads.items():
        if size % mesh.shape[MODEL]:
            raise UserError(
                f"{name} is {size}, which the {mesh.shape[MODEL]} devices of the model axis do not divide: lower "
                "config.mesh.model."
            )


# ---------------------------------------------------------------- one description of each parameter


def _names(path: tuple[Any, ...]) -> list[str]:
    return [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]


def stored_spec(path: tuple[Any, ...], ndim: int) -> P:
    """Storage axes of the parameter (or of its gradient or optimiser moment) at a tree path."""
    names = _names(path)
    part = names.pop() if names and names[-1] in QUANTIZED_PARTS else None
    name = names[-1] if names else ""
    last = MATRICES.get(name) or VECTORS.get(name) or ()
    if set(names) & set(REPLICATED_GROUPS) or len(last) > ndim:
        last = ()
    if part == "scale" and last:  # few along the input: one for each tile of it
        last = (last[0], last[1] if last[1] == MODEL else None)
    return P(*(None,) * (ndim - len(last)), *last)


def used_spec(path: tuple[Any, ...], ndim: int) -> P:
    """Axes of a parameter in compute: those of storage without the ones it is gathered over."""
    if set(_names(path)) & set(STORED_ONLY):
        return P(*(None,) * ndim)
    return P(*(MODEL if axis == MODEL else None for axis in stored_spec(path, ndim)))


def param_shardings(mesh: Mesh, tree: Any) -> Any:
    """Storage shardings of a tree of parameters, gradients or optimiser state, by the names of its leaves.

    Args:
      tree: arrays or `jax.ShapeDtypeStruct`: a target, a hypernetwork or a whole train state.

    Raises:
      UserError: the mesh does not divide an axis of a parameter; both numbers are named.
    """

    def sharding(path, leaf):
        spec = stored_spec(path, len(leaf.shape))
        for size, axes in zip(leaf.shape, spec, strict=True):
            parts = math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))
            if size % parts:
                raise UserError(
                    f"{jax.tree_util.keystr(path, simple=True, separator='.')} has an axis of {size}, which {parts} "
                    f"devices ({axes}) do not divide: change config.mesh."
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def batch_shardings(mesh: Mesh, tree: Any) -> Any:
    """Shardings of a batch `{name: [accumulate, groups, ...]}`."""
    return jax.tree.map(lambda _: NamedSharding(mesh, P(None, GROUP_AXES)), tree)


def abstract(shardings: Any, tree: Any) -> Any:
    """`tree` as `jax.ShapeDtypeStruct` with the given shardings, for lowering without data."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings)


# ---------------------------------------------------------------- inside a jitted function


def has_mesh() -> bool:
    """Whether a mesh is set."""
    return not jax.sharding.get_abstract_mesh().empty


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: that of the mesh, also where its devices are not on this machine."""
    return jax.sharding.get_abstract_mesh().abstract_device.platform if has_mesh() else jax.default_backend()


def model_shards() -> int:
    """Chips along the model axis of the mesh that is set."""
    return jax.sharding.get_abstract_mesh().shape[MODEL] if has_mesh() else 1


def reshard(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` split over the given axes, one or None for each of its own."""
    return jax.sharding.reshard(x, P(*axes)) if has_mesh() else x


def gather(params: Any) -> Any:
    """Parameters as they are used: gathered over `fsdp`; their gradients are summed back into the shards."""
    if not has_mesh():
        return params
    return jax.tree_util.tree_map_with_path(lambda path, a: jax.sharding.reshard(a, used_spec(path, a.ndim)), params)


def split_of(x: jax.Array, axis: int) -> Any:
    """The mesh axes that split an axis of `x`, or None."""
    return jax.typeof(x).sharding.spec[axis] if has_mesh() else None


def product(spec: str, x: jax.Array, w: jax.Array, *, out: int, dtype: jnp.dtype | None = None) -> jax.Array:
    """`jnp.einsum(spec, x, w)` over the last axis of x, which the axis `out` of w replaces.

    The result is split as x and that axis of w are; a contraction over a split axis ends in a sum over the chips.
    """
    sharding = P(*(split_of(x, i) for i in range(x.ndim - 1)), split_of(w, out)) if has_mesh() else None
    return jnp.einsum(spec, x, w, preferred_element_type=dtype, out_sharding=sharding)


def take(table: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of a table that is whole on every chip, split as `index` is."""
    if not has_mesh():
        return jnp.take(table, index, axis=0)
    spec = P(*(split_of(index, i) for i in range(index.ndim)), *(None,) * (table.ndim - 1))
    return table.at[index].get(out_sharding=spec)
