"""The distillation step: compiles once, averages as the paper says, learns, and the optimiser does what it is told."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2l.data.batch import Example, NeedleBatches, NeedleStage, Shapes, make_batch
from d2l.errors import UserError
from d2l.hypernet.hypernet import init_hypernet
from d2l.target.weights import load_target
from d2l.train.optimizer import OptimizerConfig, make_optimizer, stage_schedule
from d2l.train.step import StepConfig, init_state, loss_fn, make_step
from tests.conftest import hypernet_config

QUESTION = "What is the special magic number?"


@pytest.fixture(scope="module")
def target(target_folder):
    return load_target(target_folder)


@pytest.fixture(scope="module")
def hyper(target):
    return hypernet_config(target.config, aggregator="direct")


@pytest.fixture(scope="module")
def params(hyper):
    return init_hypernet(hyper, 0)


def examples(tokenizer):
    """Three documents of 1, 2 and 3 chunks with 1, 3 and 2 queries."""
    documents = ["The sky is blue.", "The grass is green. Here we go.", "The special magic number is 0042. The sun is"]
    answers = [["0042"], ["1", "there and back", "3333"], ["77", "sky"]]
    out = []
    for count, (document, replies) in enumerate(zip(documents, answers, strict=True), 1):
        ids = tokenizer.encode(document)
        size = -(-len(ids) // count)
        chunks = [ids[i : i + size] for i in range(0, len(ids), size)]
        out.append(Example(chunks, [(QUESTION, reply) for reply in replies]))
    return out


SHAPES = Shapes(contexts=3, chunks=8, queries=7, ctx_tokens=40, query_tokens=50, response_tokens=20, teacher_tokens=100)


def loss_of(params, target, hyper, batch, shapes, loss="ce", **options):
    step = StepConfig(loss, shapes.contexts, 4, **options)
    return loss_fn(params, target.params, batch, hyper, target.config, step)


@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_mean_over_tokens_then_queries_then_contexts(loss, target, hyper, params):
    documents = examples(target.tokenizer)
    whole, metrics = loss_of(params, target, hyper, make_batch(documents, target.tokenizer, SHAPES), SHAPES, loss)
    one = dataclasses.replace(SHAPES, contexts=1, queries=1)
    means = []
    for example in documents:
        each = []
        for query in example.queries:
            batch = make_batch([Example(example.chunks, [query])], target.tokenizer, one)
            each.append(loss_of(params, target, hyper, batch, one, loss)[0])
        means.append(np.mean(each))
    assert float(whole) == pytest.approx(np.mean(means), rel=1e-5)
    assert len({round(float(m), 3) for m in means}) == 3
    assert set(metrics) >= {"loss", "ce", "exact", "l1", *([loss])}


def test_l1_is_added_with_its_weight(target, hyper, params):
    batch = make_batch(examples(target.tokenizer), target.tokenizer, SHAPES)
    plain, metrics = loss_of(params, target, hyper, batch, SHAPES)
    weighted, _ = loss_of(params, target, hyper, batch, SHAPES, l1=0.5)
    assert float(weighted - plain) == pytest.approx(0.5 * float(metrics["l1"]), rel=1e-3)


def test_remat_changes_no_gradient(target, hyper, params):
    batch = make_batch(examples(target.tokenizer), target.tokenizer, SHAPES)

    def gradient(remat):
        return jax.grad(lambda p: loss_of(p, target, hyper, batch, SHAPES, remat=remat)[0])(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient(False), gradient(True))


@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_compiles_once_and_learns_and_moves_every_group(loss, target, hyper, params):
    stage = NeedleStage(contexts=4, min_tokens=0, max_tokens=60, max_chunk_len=24, max_chunks=3, teacher=loss == "kl")
    batches = NeedleBatches(stage, target.tokenizer, 0)
    optimizer = make_optimizer(OptimizerConfig(b2=0.95), lambda _: 3e-3, params)
    step = make_step(hyper, target.config, StepConfig(loss, 4, 3), optimizer)
    state = init_state(jax.tree.map(jnp.copy, params), optimizer)
    losses = []
    for _ in range(12):
        state, metrics = step(state, target.params, batches[0])
        losses.append(float(metrics["loss"]))
    state, _ = step(state, target.params, batches[1])
    assert step._cache_size() == 1
    assert losses[-1] < losses[0] - 0.1, losses
    assert int(state["step"]) == 13
    for name, group in state["params"].items():
        moved = [bool(np.any(a != b)) for a, b in zip(*map(jax.tree.leaves, (group, params[name])), strict=True)]
        assert all(moved), name


def test_bfloat16_compute_is_near_float32_and_keeps_float32_masters(target, hyper, params):
    batch = make_batch(examples(target.tokenizer), target.tokenizer, SHAPES)
    half = dataclasses.replace(target, params=jax.tree.map(lambda a: a.astype(jnp.bfloat16), target.params))
    exact, _ = loss_of(params, target, hyper, batch, SHAPES)
    rough, grads = jax.value_and_grad(lambda p: loss_of(p, half, hyper, batch, SHAPES, dtype="bfloat16")[0])(params)
    assert float(rough) == pytest.approx(float(exact), rel=0.05)
    assert {a.dtype for a in jax.tree.leaves(grads)} == {jnp.dtype(jnp.float32)}


def test_each_group_is_clipped_alone():
    params = {"big": {"w1": jnp.zeros((2, 2))}, "small": {"w1": jnp.zeros((2, 2))}}
    grads = {"big": {"w1": jnp.full((2, 2), 100.0)}, "small": {"w1": jnp.full((2, 2), 0.01)}}
    config = OptimizerConfig(clip=1.0, eps=1.0, weight_decay=0.0)  # a large eps keeps the gradient's size visible
    optimizer = make_optimizer(config, lambda _: 1.0, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["big"]["w1"], -0.5 / 1.5, rtol=1e-4)
    np.testing.assert_allclose(updates["small"]["w1"], -0.01 / 1.01, rtol=1e-4)


def test_decay_spares_vectors_norms_and_learned_queries():
    params = {
        "head": jnp.ones((2, 3)),
        "aggregator": {"q_proj": jnp.ones((2, 2)), "latents": jnp.ones((2, 2)), "norm": jnp.ones(2)},
        "scaler_B": {"down_proj": jnp.ones((2, 2))},
    }
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.1), lambda _: 1.0, params)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    assert np.all(updates["head"] < 0) and np.all(updates["aggregator"]["q_proj"] < 0)
    for spared in (updates["aggregator"]["latents"], updates["aggregator"]["norm"], updates["scaler_B"]["down_proj"]):
        assert not np.any(spared)


def test_multipliers_scale_their_group_only_and_must_exist():
    params = {"head": jnp.zeros(3), "scaler_B": jnp.zeros(3)}
    optimizer = make_optimizer(OptimizerConfig(multipliers=(("scaler_B", 0.2),)), lambda _: 1.0, params)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["scaler_B"] / updates["head"], 0.2, rtol=1e-6)
    with pytest.raises(UserError, match="nothere"):
        make_optimizer(OptimizerConfig(multipliers=(("nothere", 1.0),)), lambda _: 1.0, params)


def test_schedule_runs_through_its_stages():
    stages = [
        {"steps": 10, "warmup": 4, "lr": 1.0, "final": 0.5},
        {"steps": 20, "warmup": 0, "lr": 0.2, "final": 0.1},
    ]
    schedule = stage_schedule(stages)
    assert [float(schedule(i)) for i in (0, 2, 4)] == pytest.approx([0.0, 0.5, 1.0])
    assert float(schedule(9)) < 0.6
    assert float(schedule(10)) == pytest.approx(0.2)
    assert float(schedule(30)) == pytest.approx(0.02)
    with pytest.raises(UserError, match="cannot warm up"):
        stage_schedule([{"steps": 5, "warmup": 5, "lr": 1.0, "final": 0.1}])


def test_state_starts_at_zero(params):
    state = init_state(params, optax.sgd(0.1))
    assert int(state["step"]) == 0
