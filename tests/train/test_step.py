"""The distillation step: compiles once, averages as the paper says, learns, and the optimiser does what it is told."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from d2l.data.batch import NeedleBatches, NeedleStage, make_example
from d2l.data.pack import Example, Packer, Shapes, stack_groups
from d2l.errors import UserError
from d2l.hypernet.hypernet import init_hypernet
from d2l.model import DocToLora, Hypernetwork
from d2l.target.decoder import abstract_decoder
from d2l.target.weights import load_target
from d2l.train import losses
from d2l.train.optimizer import OptimizerConfig, make_optimizer, stage_schedule
from d2l.train.step import StepConfig, document_weight, gradients, init_state, loss_fn, make_step, neftune_noise
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


@pytest.fixture(scope="module")
def examples(target):
    """Three documents of 1, 2 and 3 chunks with 1, 3 and 2 queries."""
    documents = ["The sky is blue.", "The grass is green. Here we go.", "The special magic number is 0042. The sun is"]
    answers = [["0042"], ["1", "there and back", "3333"], ["77", "sky"]]
    out = []
    for count, (document, replies) in enumerate(zip(documents, answers, strict=True), 1):
        ids = target.tokenizer.encode(document)
        size = -(-len(ids) // count)
        chunks = [ids[i : i + size] for i in range(0, len(ids), size)]
        queries = [(QUESTION, reply) for reply in replies]
        out.append(make_example(chunks, queries, target.tokenizer, teacher=True))
    return out


SHAPES = Shapes(
    contexts=4,
    chunks=8,
    ctx_rows=8,
    ctx_tokens=40,
    query_rows=7,
    query_tokens=50,
    responses=60,
    max_chunks=3,
    teacher_rows=6,
    teacher_tokens=100,
)


def batch_of(examples, shapes=SHAPES):
    packer = Packer(shapes, 0)
    packer.add_all(examples)
    return stack_groups([packer.finish()[0]], 1)


@functools.partial(jax.jit, static_argnames=("hyper", "target", "step"))
def _loss(params, frozen, batch, hyper, target, step):
    _, sums = loss_fn(params, frozen, jax.tree.map(lambda a: a[0], batch), hyper, target, step)
    return jax.tree.map(lambda a: a / jnp.sum(batch["context_weight"]), sums)


def loss_of(params, target, hyper, batch, loss="ce", **options):
    step = StepConfig(loss, max_chunks=3, **options)
    return jax.device_get(_loss(params, target.params, batch, hyper, target.config, step))


@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_mean_over_tokens_then_queries_then_contexts(loss, target, hyper, params, examples):
    metrics = loss_of(params, target, hyper, batch_of(examples), loss)
    means = {name: [] for name in ("ce", "accuracy", "exact", loss)}
    for example in examples:
        each = [loss_of(params, target, hyper, batch_of([Example(example.chunks, [q])]), loss) for q in example.queries]
        for name in means:
            means[name].append(np.mean([one[name] for one in each]))
    for name, values in means.items():
        assert metrics[name] == pytest.approx(np.mean(values), rel=1e-5), name
    assert len({round(float(m), 3) for m in means[loss]}) == 3
    assert metrics["loss"] == metrics[loss]


def test_exact_and_accuracy_count_what_the_target_would_say(target, hyper, params, examples):
    """With B zero the target answers alone: its own continuation is exact, another token is not."""
    zero = params | {"scaler_B": jax.tree.map(jnp.zeros_like, params["scaler_B"])}
    decoder = nnx.merge(abstract_decoder(target.config)[0], target.params)
    query = examples[0].queries[0]
    said = list(query.prompt)
    for _ in range(4):
        said.append(int(jnp.argmax(decoder(jnp.asarray([said], jnp.int32))[0, -1])))
    right = dataclasses.replace(query, response=said[-4:])
    wrong = dataclasses.replace(query, response=[*said[-4:-1], (said[-1] + 1) % target.config.vocab_size])
    metrics = loss_of(zero, target, hyper, batch_of([Example(examples[0].chunks, [right, wrong])]))
    assert metrics["exact"] == pytest.approx(0.5)
    assert metrics["accuracy"] == pytest.approx(7 / 8)


def test_a_stored_teacher_is_the_one_of_the_step(target, hyper, params, examples):
    decoder = nnx.merge(abstract_decoder(target.config)[0], target.params)

    def taught(query):
        x, _, _ = decoder.run_blocks(decoder.embed(jnp.asarray([[*query.teacher_prompt, *query.response[:-1]]])))
        top = losses.teacher_top_k(decoder.unembed, decoder.final_norm(x)[0, -len(query.response) :])
        return dataclasses.replace(query, teacher=tuple(map(np.asarray, top)), teacher_prompt=())

    stored = [Example(e.chunks, [taught(q) for q in e.queries]) for e in examples]
    shapes = dataclasses.replace(SHAPES, teacher_rows=0, teacher_tokens=0, teacher_top_k=losses.TEACHER_TOP_K)
    computed = loss_of(params, target, hyper, batch_of(examples), "kl")
    given = loss_of(params, target, hyper, batch_of(stored, shapes), "kl")
    assert given["kl"] == pytest.approx(computed["kl"], rel=1e-5)
    with pytest.raises(UserError, match="stored teacher"):
        batch_of(examples, shapes)


@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_focus_weights_tokens_by_what_the_document_tells(loss, target, hyper, params, examples):
    """One token of a response at a time, each weighted by the loss that the target has without an adapter."""
    zero = params | {"scaler_B": jax.tree.map(jnp.zeros_like, params["scaler_B"])}
    example = examples[0]
    query = example.queries[0]

    def at(params, place):
        start, rest = query.response[:place], query.response[place : place + 1]
        prompts = {"prompt": [*query.prompt, *start], "teacher_prompt": [*query.teacher_prompt, *start]}
        one = Example(example.chunks, [dataclasses.replace(query, response=rest, **prompts)])
        return float(loss_of(params, target, hyper, batch_of([one]), loss)[loss])

    def entropy(place):
        tokens = jnp.asarray([[*query.teacher_prompt, *query.response[:place]]], jnp.int32)
        logp = jax.nn.log_softmax(nnx.merge(abstract_decoder(target.config)[0], target.params)(tokens)[0, -1])
        top = jax.lax.top_k(logp, losses.TEACHER_TOP_K)[0]
        return float(-jnp.sum(jnp.exp(top) * top)) if loss == "kl" else 0.0

    places = range(len(query.response))
    missing = np.array([at(zero, i) - entropy(i) for i in places])
    each = np.array([at(params, i) for i in places])
    whole = batch_of([Example(example.chunks, [query])])
    for focus in (0.25, 1.0):
        wanted = (1 - focus) * each.mean() + focus * (missing * each).sum() / missing.sum()
        assert loss_of(params, target, hyper, whole, loss, focus=focus)["loss"] == pytest.approx(wanted, rel=1e-4)
    assert len(places) > 2 and missing.min() > 0


def test_weights_of_a_query_that_lacks_nothing_stay():
    weight, query = jnp.array([0.2, 0.2, 0.3, 0.3, 0.0]), jnp.array([0, 0, 1, 1, 2])
    focused = document_weight(jnp.array([0.0, -1e-3, 3.0, 1.0, 5.0]), weight, query)
    np.testing.assert_allclose(focused, [0.2, 0.2, 0.45, 0.15, 0.0], rtol=1e-6)


def test_l1_is_added_with_its_weight_and_is_the_mean_over_contexts(target, hyper, params, examples):
    batch = batch_of(examples)
    metrics = loss_of(params, target, hyper, batch, l1=0.5)
    assert metrics["loss"] == pytest.approx(metrics["ce"] + 0.5 * metrics["l1"], rel=1e-6)
    each = [loss_of(params, target, hyper, batch_of([example]))["l1"] for example in examples]
    assert metrics["l1"] == pytest.approx(np.mean(each), rel=1e-5)


@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_compiles_once_and_learns_and_moves_every_group(loss, target, hyper, params):
    stage = NeedleStage(contexts=4, min_tokens=0, max_tokens=60, max_chunk_len=24, max_chunks=3, teacher=loss == "kl")
    batches = NeedleBatches(stage, target.tokenizer, 0)
    optimizer = make_optimizer(OptimizerConfig(b2=0.95), lambda _: 3e-3, params)
    step = make_step(hyper, target.config, StepConfig(loss, max_chunks=3), optimizer)
    state = init_state(jax.tree.map(jnp.copy, params), optimizer)
    values = []
    for _ in range(12):
        state, metrics = step(state, target.params, batches[0])
        values.append(float(metrics["loss"]))
    state, _ = step(state, target.params, batches[1])
    assert step._cache_size() == 1
    assert values[-1] < values[0] - 0.1, values
    assert int(state["step"]) == 13
    for name, group in state["params"].items():
        moved = [bool(np.any(a != b)) for a, b in zip(*map(jax.tree.leaves, (group, params[name])), strict=True)]
        assert all(moved), name


def test_bfloat16_compute_is_near_float32_and_keeps_float32_masters(target, hyper, params, examples):
    batch = batch_of(examples)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), target.params)
    exact = loss_of(params, target, hyper, batch)
    step = StepConfig("ce", max_chunks=3, dtype="bfloat16")
    grads, rough = jax.jit(gradients, static_argnums=(3, 4, 5))(params, half, batch, hyper, target.config, step)
    assert float(rough["loss"]) == pytest.approx(float(exact["loss"]), rel=0.05)
    assert {a.dtype for a in jax.tree.leaves(grads)} == {jnp.dtype(jnp.float32)}


def test_noise_is_of_neftunes_size_and_of_its_update(target, hyper, params, examples):
    segments = jnp.asarray([[0] * 4 + [1] * 9 + [-1] * 3])
    noise = np.asarray(neftune_noise(jax.random.key(0), segments, jnp.zeros((1, 16, 64))))
    for part, tokens in ((noise[:, :4], 4), (noise[:, 4:13], 9)):
        bound = (tokens * 64) ** -0.5
        assert 0.95 * bound < np.abs(part).max() <= bound and abs(part.mean()) < 0.1 * bound

    @jax.jit
    def loss(number):
        step = StepConfig("ce", max_chunks=3, neftune=5.0)
        return gradients(params, target.params, batch_of(examples), hyper, target.config, step, number)[1]["loss"]

    first, again, second = loss(0), loss(0), loss(1)
    assert first == again != second
    assert float(first) == pytest.approx(float(loss_of(params, target, hyper, batch_of(examples))["loss"]), rel=0.2)


def test_bad_options_are_named():
    with pytest.raises(UserError, match="remat is 'some'"):
        StepConfig("ce", remat="some")
    with pytest.raises(UserError, match="loss is 'mse'"):
        StepConfig("mse")
    with pytest.raises(UserError, match="focus is 2"):
        StepConfig("ce", focus=2)


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


def test_a_memory_of_packed_rows_is_that_of_each_document_in_use(target, params, examples):
    """A batch of three documents in shared rows against each alone, and the first against `DocToLora`."""
    turn = tuple(map(len, target.tokenizer.turn_wrapper))
    hyper = hypernet_config(
        target.config,
        aggregator="direct",
        memory_layers=(1, 2),
        memory_tokens=40,
        turn_tokens=turn,
        memory_strength=2.0,
    )
    params = params | {"memory": init_hypernet(hyper, 0)["memory"]}
    packed = dataclasses.replace(
        SHAPES, ctx_rows=3, ctx_tokens=80, row_chunks=4, query_rows=2, query_tokens=180, row_contexts=3, teacher_rows=0
    )
    metrics = loss_of(params, target, hyper, batch_of(examples, packed), row_chunks=4)
    alone = [loss_of(params, target, hyper, batch_of([e]))["ce"] for e in examples]
    assert metrics["ce"] == pytest.approx(np.mean(alone), rel=1e-4)
    model = DocToLora(target, Hypernetwork(hyper, params, description(target)))
    query = examples[0].queries[0]
    logits = model.logits([[*query.prompt, *query.response[:-1]]], model.internalize("The sky is blue."))
    ce = optax.softmax_cross_entropy_with_integer_labels(
        logits[0, len(query.prompt) - 1 :], jnp.asarray(query.response, jnp.int32)
    )
    assert alone[0] == pytest.approx(float(jnp.mean(ce)), rel=1e-3)
    without = {name: a for name, a in params.items() if name != "memory"}
    plain = loss_of(without, target, dataclasses.replace(hyper, memory_layers=()), batch_of(examples))["ce"]
    assert abs(plain - metrics["ce"]) > 1e-3


def description(target):
    named = {"name": target.name, "weights_hash": target.weights_hash}
    return {"target": named, "card": {"max_chunk_len": 30}}
