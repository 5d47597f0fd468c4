"""Ahead of time: collectives and FLOPs are counted as they run; a real TPU program where the compiler is installed."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from d2l.cli_config import read_hypernet_config
from d2l.data.pack import Shapes, batch_shapes
from d2l.errors import UserError
from d2l.experiments import aot
from d2l.experiments.growth import Model, step_flops
from d2l.experiments.hlo import collectives
from d2l.experiments.programs import train_program
from d2l.hypernet.hypernet import abstract_hypernet
from d2l.target.decoder import abstract_decoder
from d2l.train.flops import count_flops
from d2l.train.optimizer import OptimizerConfig, make_optimizer
from d2l.train.step import StepConfig, init_state, make_step
from tests.conftest import hypernet_config

LAYERS, WIDTH, BATCH = 5, 64, 16
SHAPES = Shapes(
    contexts=3,
    chunks=5,
    ctx_rows=2,
    ctx_tokens=300,
    query_rows=2,
    query_tokens=40,
    responses=530,
    row_chunks=3,
    row_contexts=2,
    max_chunks=2,
)


@pytest.fixture(scope="module")
def sharded_scan():
    """A jitted gradient through a scan of two products each, on 2 x 4 devices, and its abstract arguments."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)

    def loss(w_LDF, x_BD):
        def block(x_BD, w_DF):
            w_DF = jax.sharding.reshard(w_DF, P(None, "model"))
            h_BF = jnp.tanh(jnp.einsum("bd,df->bf", x_BD, w_DF))
            return jnp.einsum("bf,df->bd", h_BF, w_DF, out_sharding=P("data", None)), None

        return jnp.sum(jax.lax.scan(block, x_BD, w_LDF)[0])

    def array(shape, spec):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.NamedSharding(mesh, spec))

    args = array((LAYERS, WIDTH, WIDTH), P(None, "data", "model")), array((BATCH, WIDTH), P("data", None))
    return jax.jit(jax.grad(loss)), args, mesh


def test_a_mesh_that_divides_no_heads_is_named():
    fields = read_hypernet_config("configs/mistral_7b_main.py", [])
    mesh = jax.make_mesh((1, 1, 8), ("data", "fsdp", "model"), axis_types=(AxisType.Explicit,) * 3)
    with pytest.raises(UserError, match="hypernet_num_kv_heads is 4, which the 8 devices"):
        train_program(fields, "one_chunk", mesh)


def test_collectives_count_as_often_as_their_loop_runs(sharded_scan):
    function, args, mesh = sharded_scan
    with jax.set_mesh(mesh):
        found = collectives(function.lower(*args).compile().as_text())
    weights, activations = WIDTH * WIDTH // 4 * 4, BATCH // 2 * WIDTH * 4  # bytes on one device
    assert found["all-gather"]["bytes"] in (
        LAYERS * weights,
        2 * LAYERS * weights,
    )  # again in the backward pass, or kept
    # The output of each block, its input's gradient, and the gradients of w from both products.
    assert found["all-reduce"]["bytes"] == LAYERS * (2 * activations + 2 * weights)


def test_parts_of_an_asynchronous_collective_count_once():
    part = (
        "%g.{} = bf16[8,64]{{1,0:T(8,128)}} all-gather(%p), channel_id=7, replica_groups={{{{0,1}}}}, dimensions={{0}}"
    )
    text = "\n".join(
        [
            "%start (p: bf16[4,64]) -> bf16[8,64] {",
            "  %p = bf16[4,64]{1,0} parameter(0)",
            "  " + part.format(1),
            "}",
            "%progress (p: bf16[4,64]) -> bf16[8,64] {",
            "  %p = bf16[4,64]{1,0} parameter(0)",
            "  " + part.format(2),
            "}",
            "%more (i: s32[]) -> pred[] {",
            "  %i = s32[] parameter(0)",
            "  %c.1 = s32[] constant(9)",
            "  ROOT %lt = pred[] compare(%i, %c.1), direction=LT",
            "}",
            "%body (i: s32[]) -> s32[] {",
            "  %i = s32[] parameter(0)",
            "  %f = bf16[8,64]{1,0} fusion(%i), kind=kCustom, calls=%progress",
            "  ROOT %next = s32[] add(%i, %i)",
            "}",
            "ENTRY %main (x: bf16[4,64]) -> s32[] {",
            "  %x = bf16[4,64]{1,0} parameter(0)",
            "  %f = bf16[8,64]{1,0} fusion(%x), kind=kCustom, calls=%start",
            "  ROOT %w = s32[] while(%x), condition=%more, body=%body",
            "}",
        ]
    )
    assert collectives(text) == {"all-gather": {"count": 1, "bytes": 8 * 64 * 2}}


def test_flops_of_a_scan_are_those_of_all_its_turns(sharded_scan):
    function, args, mesh = sharded_scan
    product = 2 * BATCH * WIDTH * WIDTH
    with jax.set_mesh(mesh):
        assert count_flops(function, *args) == 3 * 2 * LAYERS * product


@pytest.mark.parametrize(
    "changes, loss, remat",
    [
        ({"features": "per_layer_activations"}, "kl", "none"),
        ({"features": "per_layer_activations", "num_self_attn_per_block": 1}, "kl", "full"),
        ({"features": "early_exit", "aggregator": "direct"}, "ce", "none"),
        ({"features": "embed_only", "num_pre_head_layers": 2}, "kl", "none"),
    ],
)
def test_formulas_give_the_flops_of_the_real_step(target_config, changes, loss, remat):
    hyper = hypernet_config(target_config, ("down_proj", "q_proj"), **changes)
    stored = loss == "kl" and remat == "full"
    shapes = dataclasses.replace(SHAPES, teacher_top_k=4 if stored else 0)
    if hyper.features == "embed_only":  # so many chunks that each query row has an adapter of its own
        shapes = dataclasses.replace(shapes, chunks=6)
    if loss == "kl" and not stored:
        shapes = dataclasses.replace(shapes, teacher_rows=2, teacher_tokens=280)
    config = StepConfig(loss, max_chunks=shapes.max_chunks, row_chunks=shapes.row_chunks, remat=remat)
    params = abstract_hypernet(hyper)[1]
    optimizer = make_optimizer(OptimizerConfig(), lambda step: 1e-3, params)
    state = jax.eval_shape(lambda: init_state(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), params), optimizer))
    # One group at a time: several at once would share the products of learned queries alone.
    batch = batch_shapes(shapes, accumulate=6, groups=1)
    counted = count_flops(
        make_step(hyper, target_config, config, optimizer), state, abstract_decoder(target_config)[1], batch
    )
    parts = step_flops(Model(target_config, hyper), shapes, 6, remat=remat == "full", kl=loss == "kl")
    # Where blocks are recomputed, products that are the same in every turn of a loop are not.
    assert sum(parts.values()) == pytest.approx(counted, rel=0 if remat == "none" else 0.01)
    assert parts["recomputed"] >= 0 and min(parts["encoder"], parts["student"], parts["hypernetwork"]) >= 0


def test_unknown_topologies_are_told_with_the_known_ones():
    with pytest.raises(UserError, match="no topology 'v5e:3x3'.*v5e: 1x1, 2x2"):
        aot.tpu_devices("v5e:3x3")
    with pytest.raises(UserError, match="no topology 'h100'"):
        aot.tpu_devices("h100")


def test_a_missing_compiler_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'd2l\[aot\]'"):
        aot.tpu_devices("v5e:4x4")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler (extra aot) is not installed")
def test_a_small_config_compiles_for_four_chips():
    fields = read_hypernet_config("configs/niah_smollm2.py", ["--config.hypernet.layer_idx=1"])
    fields |= {"mesh": {"fsdp": -1}, "packs": 4}
    report = aot.aot_report(fields, "v5e:2x2", stage="needle")
    assert report["chips"] == 4
    assert 0 < report["arguments"] < report["bytes_per_chip"] < report["hbm_bytes"] == 16 * 2**30
    assert report["collectives"]["all-gather"]["bytes"] > 2 * 134e6  # the whole target, in bfloat16
    assert report["internalize"]["flops"] > 0
    assert report["model_flops"] == pytest.approx(report["flops"], rel=0.05)  # nothing is computed again
