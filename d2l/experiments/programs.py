"""A config's programs with shapes in place of arrays: the train step of a stage, and internalizing.

Letters: G documents at once, L layers, R rank of a document's adapter, N chunks of a call, T tokens of a chunk.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from d2l.data.batch import NeedleBatches
from d2l.data.pack import Shapes, batch_shapes
from d2l.errors import UserError
from d2l.hypernet.hypernet import abstract_hypernet
from d2l.hypernet.reader import TOKENS_PER_CALL, make_reader
from d2l.mesh import (
    GROUP_AXES,
    abstract,
    batch_shardings,
    gather,
    group_shards,
    param_shardings,
    split_packs,
)
from d2l.target.decoder import abstract_decoder
from d2l.target.shapes import target_shape
from d2l.target.weights import load_target
from d2l.train.flops import count_flops
from d2l.train.optimizer import OptimizerConfig, make_optimizer, stage_schedule
from d2l.train.sections import hypernet_config, step_config
from d2l.train.stages import StoredStage, needle_stage, read_stages, setting
from d2l.train.step import check_mesh, init_state, make_step

DOCUMENT_TOKENS = 131_072  # of a document that is internalized


def stage_shapes(fields: dict[str, Any], name: str) -> Shapes:
    """The shapes of one pack of a stage.

    Raises:
      UserError: no such stage, or a stage on needles of a target whose tokenizer is not on this machine.
    """
    stages = fields["stages"]
    read_stages(fields)
    if name not in stages:
        raise UserError(f"there is no stage {name!r}: the config has {', '.join(sorted(stages))}.")
    if "data" in stages[name]:
        return StoredStage.of(stages[name]).shapes
    needles = needle_stage(stages[name], teacher=setting(fields, stages[name], "loss") == "kl")
    tokenizer = load_target(fields["target"] or None).tokenizer  # it makes needles as long as they are
    return NeedleBatches(needles, tokenizer, 0, groups=fields.get("packs", 1)).shapes


def largest_stage(fields: dict[str, Any]) -> str:
    """The stage whose train step has the most FLOPs."""
    if len(fields["stages"]) == 1:
        return next(iter(fields["stages"]))

    def flops(name: str) -> int:
        function, args = _train(fields, name, None)
        return count_flops(function, *args)

    return max(sorted(fields["stages"]), key=flops)


def model_flops(fields: dict[str, Any], stage: str) -> int:
    """FLOPs of a stage's train step without what remat computes again."""
    function, args = _train(fields | {"remat": "none"}, stage, None)
    return count_flops(function, *args)


def train_program(fields: dict[str, Any], stage: str, mesh: Mesh) -> tuple[Callable[..., Any], tuple[Any, ...], int]:
    """The jitted train step of a stage, its abstract arguments on a mesh, and the context tokens it has room for."""
    function, (state, frozen, batch) = _train(fields, stage, mesh)
    args = (
        abstract(param_shardings(mesh, state), state),
        abstract(param_shardings(mesh, frozen), frozen),
        abstract(batch_shardings(mesh, batch), batch),
    )
    return function, args, batch["ctx_tokens"].size


def _train(fields: dict[str, Any], stage: str, mesh: Mesh | None) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    target = target_shape(fields["target"])
    hyper = hypernet_config(fields["hypernet"], target)
    params = abstract_hypernet(hyper)[1]
    multipliers = tuple(fields["lr_multipliers"].items())
    optimizer_config = OptimizerConfig(**fields["optimizer"], multipliers=multipliers)
    optimizer = make_optimizer(optimizer_config, stage_schedule(read_stages(fields)), params)
    accumulate, groups = split_packs(fields.get("packs", 1), mesh)
    if mesh is not None:
        check_mesh(mesh, target, hyper)
    shapes = stage_shapes(fields, stage)
    return make_step(hyper, target, step_config(fields, fields["stages"][stage]), optimizer), (
        jax.eval_shape(lambda: init_state(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), params), optimizer)),
        _cast(abstract_decoder(target)[1], fields["dtype"]),
        batch_shapes(shapes, accumulate=accumulate, groups=groups),
    )


def internalize_program(fields: dict[str, Any], mesh: Mesh) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """One call of what `DocToLora.internalize` repeats, for one document on every group shard of a mesh.

    A document has `DOCUMENT_TOKENS` tokens, its adapter rows for all of them; a call reads N chunks into it.
    """
    target = target_shape(fields["target"])
    hyper = hypernet_config(fields["hypernet"], target)
    T = min(fields["max_chunk_len"], target.max_position_embeddings)
    N, G = max(1, TOKENS_PER_CALL // T), group_shards(mesh)
    R = (-(-DOCUMENT_TOKENS // T) + hyper.use_bias) * hyper.rank
    dtype = jnp.dtype(fields["dtype"])
    buffer = {
        name: {
            "A": jax.ShapeDtypeStruct((G, hyper.num_layers, 1, R, d_in), dtype),
            "B": jax.ShapeDtypeStruct((G, hyper.num_layers, 1, R, d_out), dtype),
        }
        for name, d_in, d_out in zip(hyper.target_modules, hyper.d_in, hyper.d_out, strict=True)
    }
    shapes = {"tokens": ((N, T), jnp.int32), "mask": ((N, T), bool), "context": ((N,), jnp.int32)}
    shapes["slot"] = shapes["context"]
    chunks = [jax.ShapeDtypeStruct((G, *shape), kind) for shape, kind in shapes.values()]
    read = make_reader(target, hyper, stacked=True, iterative=True)

    def read_each(encoder, params, *chunks):
        # Layers are gathered one by one, where they run.
        whole = encoder | gather({name: part for name, part in encoder.items() if name != "layers"})
        gathered = gather(params)
        return jax.vmap(lambda *document: read(whole, gathered, *document))(*chunks)

    encoder = _cast(abstract_decoder(target)[1], fields["dtype"])
    params = _cast(abstract_hypernet(hyper)[1], fields["dtype"])
    by_group = NamedSharding(mesh, P(GROUP_AXES))
    return jax.jit(read_each, donate_argnums=2), (
        abstract(param_shardings(mesh, encoder), encoder),
        abstract(param_shardings(mesh, params), params),
        *jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=by_group), (buffer, *chunks)),
    )


def _cast(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.dtype(dtype)), tree)
