"""Training which chunks stay: what stands in a chunk, that the loss falls, and that training begins with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from d2l.errors import UserError
from d2l.hypernet.features import context_features
from d2l.hypernet.hypernet import abstract_hypernet, init_hypernet
from d2l.hypernet.store import load_hypernet
from d2l.target.decoder import abstract_decoder
from d2l.train import loop, relevance
from d2l.train.apart import with_part
from d2l.train.step import StepConfig
from tests.conftest import hypernet_config
from tests.train import test_noise
from tests.train.test_loop import config_for
from tests.train.test_noise import PACKED
from tests.train.test_step import batch_of

examples, target = test_noise.examples, test_noise.target
STEP = StepConfig("ce", row_chunks=4, max_chunks=2)


@pytest.fixture(scope="module")
def hyper(target):
    return hypernet_config(target.config, aggregator="direct", relevance=True)


@pytest.fixture(scope="module")
def batch(examples):
    return batch_of(examples, PACKED)


def triples(ids):
    return [tuple(ids[i : i + 3]) for i in range(len(ids) - 2)]


def shares_of(example):
    """By text: of each chunk, the largest share of an answer's triples that stand in it."""
    answers = [triples(query.response) for query in example.queries]
    return [
        max([sum(t in triples(chunk) for t in answer) / len(answer) for answer in answers if answer], default=0.0)
        for chunk in example.chunks
    ]


def test_shares_are_those_of_texts_one_by_one(batch, examples):
    group = jax.tree.map(lambda a: jnp.asarray(a[0, 0]), batch)
    found = np.asarray(relevance.quoted_shares(group, STEP.row_chunks))
    wanted = [share for example in examples for share in shares_of(example)]
    assert len({*wanted}) > 2 and 0.0 in wanted
    np.testing.assert_allclose(found[: len(wanted)], wanted, atol=1e-6)
    assert not found[len(wanted) :].any()


def test_sums_are_those_of_chunks_one_by_one(target, hyper, batch, examples):
    params = init_hypernet(hyper, 0)
    weight = 0.1 * jax.random.normal(jax.random.key(1), params["relevance"]["weight"].shape)
    params = params | {"relevance": dict(params["relevance"]) | {"weight": weight}}
    decoder = nnx.merge(abstract_decoder(target.config)[0], target.params)
    hypernet = nnx.merge(abstract_hypernet(hyper)[0], params)
    group = jax.tree.map(lambda a: jnp.asarray(a[0, 0]), batch)
    sums = relevance.relevance_sums(hypernet, decoder, group, STEP)
    losses, errors = [], []
    for example in examples:
        for ids, share in zip(example.chunks, shares_of(example), strict=True):
            features = np.asarray(context_features(decoder, hyper, jnp.asarray([ids], jnp.int32))[0])
            chance = 1 / (1 + np.exp(4.0 - np.log(np.exp(features @ np.asarray(weight)).sum())))
            losses.append(-share * np.log(chance) - (1 - share) * np.log1p(-chance))
            errors.append(abs(chance - share))
    assert int(sums["count"]) == len(losses) == 5
    np.testing.assert_allclose(sums["loss"], sum(losses), rtol=2e-3)
    np.testing.assert_allclose(sums["error"], sum(errors), rtol=2e-3)


def test_updates_tell_chunks_apart_and_leave_the_rest(target, hyper, batch):
    params, told = init_hypernet(hyper, 0), []
    what = "relevance", relevance.TRAINED, relevance.relevance_sums
    size = 200, hyper, target.config, STEP
    after = with_part(params, *what, target.params, [batch] * 200, *size, lambda *means: told.append(means))
    assert [number for number, _ in told] == [1, *range(20, 201, 20)]
    assert told[-1][1]["error"] < 0.8 * told[0][1]["error"]
    assert all(after[name] is part for name, part in params.items() if name != "relevance")


def test_training_begins_with_it(target_folder, tmp_path):
    config = config_for(target_folder)
    with config.unlocked():
        config.lr, config.lr_multipliers = 0.0, {}
    loop.train(config, tmp_path / "without")
    with config.unlocked():
        config.relevance_steps = 2
    with pytest.raises(UserError, match="relevance_steps is 2, but the hypernetwork has no relevance: set relevance"):
        loop.train(config, tmp_path / "none")
    with config.unlocked():
        config.init = str(tmp_path / "without" / "hypernet")
        config.hypernet.relevance = True
        config.relevance_steps = 0
    with pytest.raises(UserError, match="relevance is set, but was never learned"):
        loop.train(config, tmp_path / "never")
    with config.unlocked():
        config.relevance_steps = 2
    loop.train(config, tmp_path / "with")
    with config.unlocked():
        config.packs, config.mesh = jax.device_count(), {"data": -1}
    with pytest.raises(UserError, match="relevance_steps is 2, which no mesh can do yet"):
        loop.train(config, tmp_path / "mesh")
    hyper, params, _ = load_hypernet(tmp_path / "with" / "hypernet")
    before = load_hypernet(tmp_path / "without" / "hypernet")[1]
    assert hyper.relevance and np.any(params.pop("relevance")["weight"])
    jax.tree.map(np.testing.assert_array_equal, params, before)
