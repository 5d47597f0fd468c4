"""However a batch is packed, accumulated and split over chips, loss and gradients are the same.

Eight simulated devices; float32.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2l import mesh as meshes
from d2l.data.batch import make_example
from d2l.data.pack import Packer, Shapes, stack_groups
from d2l.errors import UserError
from d2l.hypernet.hypernet import init_hypernet
from d2l.train.optimizer import OptimizerConfig, make_optimizer
from d2l.train.pretrain import init_target
from d2l.train.step import StepConfig, adapters_of_rows, check_mesh, gradients, init_state, make_step
from tests.conftest import hypernet_config, lively

PACKS, DOCUMENTS = 8, 24
MODULES = ("down_proj", "q_proj")  # one whose input, one whose output is split
STEP = StepConfig("kl", max_chunks=3, row_chunks=5, l1=0.1, focus=0.5)
# Three documents of a pack share rows of chunks, of queries and of teacher prompts.
SHAPES = Shapes(
    contexts=3,
    chunks=9,
    ctx_rows=2,
    ctx_tokens=100,
    query_rows=4,
    query_tokens=70,
    responses=72,
    row_chunks=5,
    row_contexts=2,
    max_chunks=3,
    teacher_rows=4,
    teacher_tokens=120,
)
MESHES = {
    "8 x 1": {"data": 8},
    "4 x 2": {"data": 4, "model": 2},
    "2 x 4": {"data": 2, "model": 4},
    "fsdp": {"fsdp": 8},
}


@pytest.fixture(scope="module")
def setup(target_config):
    """Target config, hypernetwork config, and parameters of both."""
    target = dataclasses.replace(
        target_config, num_hidden_layers=2, layer_types=("full_attention",) * 2, num_key_value_heads=4
    )
    sizes = {"num_heads": 4, "num_kv_heads": 4, "latent_size": 16, "num_blocks": 1}
    hyper = hypernet_config(target, MODULES, features="per_layer_activations", **sizes)
    return target, hyper, lively(init_target(target, 0)), init_hypernet(hyper, 0)


@pytest.fixture(scope="module")
def examples(tokenizer):
    """Documents of one to three chunks with one to three queries."""
    words = "The sky is blue. The grass is green. Here we go. The special magic number is 0042.".split()
    out = []
    for i in range(DOCUMENTS):
        ids = tokenizer.encode(" ".join(words[i % 5 : i % 5 + 4 + i % 3]))
        size = -(-len(ids) // (1 + i % 3))
        answers = [("What is the sky?", " ".join(words[i % 7 :][: 1 + q])) for q in range(1 + (i // 3) % 3)]
        chunks = [ids[start : start + size] for start in range(0, len(ids), size)]
        out.append(make_example(chunks, answers, tokenizer, teacher=True))
    return out


def batch_of(examples, shapes, tokenizer, *, packs=PACKS, accumulate=1):
    groups = []
    for part in np.array_split(np.arange(len(examples)), packs):
        packer = Packer(shapes, tokenizer.pad_id)
        packer.add_all([examples[i] for i in part])
        groups.append(packer.finish()[0])
    return stack_groups(groups, accumulate)


def run(setup, batch, step=STEP, mesh=None):
    """`(gradients, metrics)` as numpy, on a mesh where one is given."""
    target, hyper, frozen, params = setup
    function = functools.partial(gradients, hyper=hyper, target=target, step=step)
    if mesh is None:
        return jax.device_get(jax.jit(function)(params, frozen, batch))
    with jax.set_mesh(mesh):
        params, frozen = (jax.device_put(tree, meshes.param_shardings(mesh, tree)) for tree in (params, frozen))
        batch = jax.device_put(batch, meshes.batch_shardings(mesh, batch))
        grads, metrics = jax.jit(function)(params, frozen, batch)
        for a, g in zip(jax.tree.leaves(params), jax.tree.leaves(grads), strict=True):
            assert g.sharding.is_equivalent_to(a.sharding, a.ndim), (g.sharding, a.sharding)
        return jax.device_get((grads, metrics))


def same(got, expected):
    """Every gradient and every metric, relative to its size."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(np.ravel(a - b)) <= 1e-5 * np.linalg.norm(np.ravel(b)), jax.tree_util.keystr(path)


@pytest.fixture(scope="module")
def packed(setup, examples, tokenizer):
    batch = batch_of(examples, SHAPES, tokenizer)
    return batch, run(setup, batch)


@pytest.mark.parametrize("name", MESHES)
def test_meshes_agree(name, setup, packed):
    same(run(setup, packed[0], mesh=meshes.make_mesh(MESHES[name])), packed[1])


@pytest.fixture(scope="module")
def copying(setup):
    """The setup with a hypernetwork that copies into modules whose inputs are split over `model`."""
    target, _, frozen, _ = setup
    hyper = hypernet_config(
        target,
        ("down_proj", "o_proj"),
        copy_size=8,
        relevance=True,
        num_heads=4,
        num_kv_heads=4,
        num_blocks=1,
        aggregator="direct",
    )
    return target, hyper, frozen, init_hypernet(hyper, 0)


def test_meshes_agree_on_copies(copying, packed):
    expected = run(copying, packed[0])
    for name in ("2 x 4", "fsdp"):
        same(run(copying, packed[0], mesh=meshes.make_mesh(MESHES[name])), expected)


def test_a_memory_on_a_mesh_is_refused(setup):
    target = setup[0]
    hyper = hypernet_config(target, memory_layers=(1,), memory_tokens=90, turn_tokens=(2, 1))
    with pytest.raises(UserError, match="memory cannot be trained on a mesh"):
        check_mesh(meshes.make_mesh(MESHES["fsdp"]), target, hyper)


def test_unpacked_equals_packed(setup, examples, tokenizer, packed):
    """One chunk, one query and one teacher prompt a row, all documents in one group."""
    rows = sum(len(e.queries) for e in examples)
    shapes = Shapes(
        contexts=DOCUMENTS + 1,
        chunks=60,
        ctx_rows=60,
        ctx_tokens=64,
        query_rows=rows,
        query_tokens=max(len(q.prompt) + len(q.response) - 1 for e in examples for q in e.queries),
        responses=300,
        max_chunks=3,
        teacher_rows=rows,
        teacher_tokens=max(len(q.teacher_prompt) + len(q.response) - 1 for e in examples for q in e.queries),
    )
    batch = batch_of(examples, shapes, tokenizer, packs=1)
    segments = packed[0]["ctx_segments"].max(), (packed[0]["query_slots"] > 0).sum()
    assert segments[0] >= 2 and segments[1] > 0 and batch["ctx_segments"].max() == 0 == batch["query_segments"].max()
    same(run(setup, batch, dataclasses.replace(STEP, row_chunks=1)), packed[1])


@pytest.mark.parametrize("name", [None, "2 x 4"])
def test_rows_that_share_one_adapter_equal_rows_of_their_own(name, setup, examples, tokenizer, packed):
    shapes = dataclasses.replace(SHAPES, row_contexts=3, query_rows=3, query_tokens=120)
    batch = batch_of(examples, shapes, tokenizer)
    chunks = {"down_proj": {"A": jnp.zeros((shapes.chunks, 1, 2, 3))}}
    group = jax.tree.map(lambda a: a[0, 0], batch)
    assert adapters_of_rows(chunks, None, group, shapes.max_chunks)[0]["down_proj"]["A"].shape == (1, 1, 18, 3)
    same(run(setup, batch, mesh=name and meshes.make_mesh(MESHES[name])), packed[1])


def test_accumulation_and_remat_change_nothing(setup, examples, tokenizer, packed):
    batch = batch_of(examples, SHAPES, tokenizer, accumulate=4)
    assert batch["ctx_tokens"].shape[:2] == (4, 2)
    same(run(setup, batch, dataclasses.replace(STEP, remat="full")), packed[1])


def test_the_step_compiles_once_and_keeps_its_shards(setup, packed):
    target, hyper, frozen, params = setup
    optimizer = make_optimizer(OptimizerConfig(), lambda _: 1e-3, params)
    step = make_step(hyper, target, dataclasses.replace(STEP, remat="dots"), optimizer)
    mesh = meshes.make_mesh({"data": 1, "fsdp": 4, "model": 2})
    with jax.set_mesh(mesh):
        state = init_state(jax.device_put(params, meshes.param_shardings(mesh, params)), optimizer)
        shardings = meshes.param_shardings(mesh, state)
        state = jax.device_put(state, shardings)
        frozen = jax.device_put(frozen, meshes.param_shardings(mesh, frozen))
        batch = jax.device_put(packed[0], meshes.batch_shardings(mesh, packed[0]))
        state, first = step(state, frozen, batch)
        for a, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
            assert a.sharding.is_equivalent_to(sharding, a.ndim)
        state, second = step(state, frozen, batch)
    assert step._cache_size() == 1
    same({name: np.asarray(first[name]) for name in packed[1][1]}, packed[1][1])
    assert float(second["loss"]) < float(first["loss"])
    moments = {
        jax.tree_util.keystr(path, simple=True, separator="."): a
        for path, a in jax.tree_util.tree_leaves_with_path(state)
    }
    moments = [a for name, a in moments.items() if ".mu." in name and name.endswith((".head", ".w1", "attn.q_proj"))]
    assert len(moments) >= 4 and all(a.addressable_shards[0].data.size * 8 == a.size for a in moments)
