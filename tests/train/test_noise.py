"""What is measured of a memory's noise: which tokens are paired, and that training begins with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from d2l.data.batch import make_example
from d2l.hypernet.features import read_context
from d2l.hypernet.hypernet import abstract_hypernet, init_hypernet
from d2l.hypernet.memory import noise_maps
from d2l.hypernet.store import load_hypernet
from d2l.target.decoder import abstract_decoder
from d2l.target.weights import load_target
from d2l.train import loop, noise
from d2l.train.step import StepConfig
from tests.conftest import hypernet_config
from tests.train.test_loop import config_for, rows
from tests.train.test_step import QUESTION, SHAPES, batch_of

LAYERS = (1, 2)
PACKED = dataclasses.replace(
    SHAPES, ctx_rows=3, ctx_tokens=80, row_chunks=4, query_rows=2, query_tokens=180, row_contexts=3, teacher_rows=0
)


@pytest.fixture(scope="module")
def target(target_folder):
    return load_target(target_folder)


@pytest.fixture(scope="module")
def examples(target):
    """Documents of 1, 2 and 2 chunks whose answers say some of their words, one twice in its document."""
    said = [
        ("The sky is blue.", ["blue.", "The sky is"]),
        ("The grass is green. Here we go. The sun is green.", ["is green.", "Here we"]),
        ("The special magic number is 0042. The sun is", ["number is 0042", "no"]),
    ]
    out = []
    for count, (document, answers) in zip((1, 2, 2), said, strict=True):
        ids = target.tokenizer.encode(document)
        size = -(-len(ids) // count)
        chunks = [ids[i : i + size] for i in range(0, len(ids), size)]
        out.append(make_example(chunks, [(QUESTION, answer) for answer in answers], target.tokenizer))
    return out


@pytest.fixture(scope="module")
def hyper(target):
    turn = tuple(map(len, target.tokenizer.turn_wrapper))
    sizes = {"memory_layers": LAYERS, "memory_tokens": 40, "turn_tokens": turn, "memory_noise": 6}
    return hypernet_config(target.config, aggregator="direct", **sizes)


def unit(a):
    return a / np.maximum(np.linalg.norm(a, axis=-1, keepdims=True), 1e-6)


def keys_and_inputs(decoder, hyper, ids):
    """Inputs of the memory's layers of one text alone: without the first token's direction, and as they are."""
    x = np.asarray(read_context(decoder, hyper, jnp.asarray([ids], jnp.int32))[1]["memory"]["inputs"][:, 0])
    first = unit(x[:, :1])
    keys = unit(x - np.sum(x * first, axis=-1, keepdims=True) * first)
    return keys, unit(x)


def pairs_of(decoder, hyper, example):
    """e of each pair, found text by text."""
    before, after = hyper.turn_tokens
    found = []
    chunks = [(ids, keys_and_inputs(decoder, hyper, ids)[0]) for ids in example.chunks]
    for query in example.queries:
        said = [*query.prompt, *query.response]
        _, inputs = keys_and_inputs(decoder, hyper, said[:-1])
        for place, word in enumerate(query.response, len(query.prompt) - 1):
            fitting = [
                keys[:, t]
                for ids, keys in chunks
                for t in range(before, len(ids) - after - 1)
                if word in ids[t + 1 : min(t + 3, len(ids) - after)]
            ]
            if fitting:
                found.append(max(fitting, key=lambda key, x=inputs[:, place]: np.sum(key * x)) - inputs[:, place])
    return found


def test_each_answer_token_is_paired_with_the_nearest_that_says_the_same(target, hyper, examples):
    decoder = nnx.merge(abstract_decoder(target.config)[0], target.params)
    params = init_hypernet(hyper, 0)
    metric = 0.3 * jax.random.normal(jax.random.key(1), params["memory"]["metric"].shape)
    params = params | {"memory": dict(params["memory"]) | {"metric": metric}}
    hypernet = nnx.merge(abstract_hypernet(hyper)[0], params)
    group = jax.tree.map(lambda a: jnp.asarray(a[0, 0]), batch_of(examples, PACKED))
    moments, count = noise.noise_moments(hypernet, decoder, group, row_chunks=4)
    found = [e for example in examples for e in pairs_of(decoder, hyper, example)]
    assert 3 < len(found) == int(count)
    found = np.array(found) * np.exp(np.asarray(metric))
    wanted = np.einsum("pni,pnj->nij", found, found)
    np.testing.assert_allclose(moments, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())

    batches = [batch_of(examples, PACKED)] * 2
    step = StepConfig("ce", row_chunks=4)
    params = noise.with_noise(params, target.params, batches, hyper, target.config, step)
    maps = np.asarray(noise_maps(jnp.asarray(wanted / len(found), jnp.float32), 6))
    for name in ("noise_in", "noise_out"):  # but for the signs of directions
        given = np.asarray(params["memory"][name])
        both = [np.einsum("nis,njs->nij", a, a) for a in (given, maps)]
        np.testing.assert_allclose(*both, rtol=0, atol=2e-2 * np.abs(both[1]).max())


def test_training_begins_with_it_once(target_folder, target, tmp_path):
    turn = tuple(map(len, target.tokenizer.turn_wrapper))
    config = config_for(target_folder)
    with config.unlocked():
        config.lr = 0.0
        config.lr_multipliers = {}
        config.hypernet.update({"memory_layers": LAYERS, "memory_tokens": 24 + sum(turn), "turn_tokens": turn})
    loop.train(config, tmp_path / "plain")
    _, plain, _ = load_hypernet(tmp_path / "plain" / "hypernet")
    assert "noise_in" not in plain["memory"]

    with config.unlocked():
        config.init = str(tmp_path / "plain" / "hypernet")
        config.hypernet.update({"memory_noise": 5, "memory_ridge": 0.01})
        config.hypernet.update({"memory_value_map": True, "memory_skip_first": True})
    loop.train(config, tmp_path / "noise")
    hyper, params, _ = load_hypernet(tmp_path / "noise" / "hypernet")
    into, out = params["memory"].pop("noise_in"), params["memory"].pop("noise_out")
    assert hyper.memory_ridge == 0.01 and np.any(into) and not np.any(params["memory"].pop("value_map"))
    np.testing.assert_array_equal(into, out)
    jax.tree.map(np.testing.assert_array_equal, params["memory"], plain["memory"])
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("plain", "noise")]
    assert not np.allclose(*losses, rtol=1e-4)

    with config.unlocked():
        config.init = str(tmp_path / "noise" / "hypernet")
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(noise, "with_noise")  # it is there already
        loop.train(config, tmp_path / "again")
    again = load_hypernet(tmp_path / "again" / "hypernet")[1]
    np.testing.assert_array_equal(again["memory"]["noise_in"], into)
