"""Training how a memory is read: what is counted, that it finds more, and that training begins with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from d2l.errors import UserError
from d2l.hypernet.hypernet import abstract_hypernet, init_hypernet
from d2l.hypernet.store import load_hypernet
from d2l.target.decoder import abstract_decoder
from d2l.train import loop, reading
from d2l.train.apart import with_part
from d2l.train.step import StepConfig
from tests.train import test_noise
from tests.train.test_loop import config_for
from tests.train.test_noise import LAYERS, PACKED, keys_and_inputs
from tests.train.test_step import batch_of

examples, hyper, target = test_noise.examples, test_noise.hyper, test_noise.target
STEP = StepConfig("ce", row_chunks=4, max_chunks=2)


def sums_of(decoder, hyper, example):
    """-log of the share of the rows that say each word, and whether the first row is one of them, text by text."""
    before, after = hyper.turn_tokens
    keys = np.concatenate([keys_and_inputs(decoder, hyper, ids)[0][:, 1:] for ids in example.chunks], axis=1)
    words = [
        ids[t + 1 : min(t + 3, len(ids) - after)] if before <= t < len(ids) - after - 1 else []
        for ids in example.chunks
        for t in range(1, len(ids))
    ]
    rows = [np.linalg.solve(k @ k.T + hyper.memory_ridge * np.eye(len(k)), k) for k in keys.astype(np.float64)]
    losses, found = [], []
    for query in example.queries:
        said = [*query.prompt, *query.response]
        _, inputs = keys_and_inputs(decoder, hyper, said[:-1])
        for place, word in enumerate(query.response, len(query.prompt) - 1):
            fits = np.array([word in said for said in words])
            for a, x in zip(rows, inputs[:, place], strict=True):
                if np.any(fits):
                    score = np.exp(reading.SHARPNESS * (a @ x))
                    losses.append(-np.log(score[fits].sum() / (score.sum() + extra(example, hyper, len(a)))))
                    found.append(score[fits].max() >= score.max())
    return losses, found


def extra(example, hyper, rows):
    """Places of the chunks' rows that hold no token: each answers 0, so that it counts 1 in the softmax."""
    return len(example.chunks) * hyper.memory_tokens - rows


def test_sums_are_those_of_texts_one_by_one(target, hyper, examples):
    decoder = nnx.merge(abstract_decoder(target.config)[0], target.params)
    hypernet = nnx.merge(abstract_hypernet(hyper)[0], init_hypernet(hyper, 0))
    group = jax.tree.map(lambda a: jnp.asarray(a[0, 0]), batch_of(examples, PACKED))
    sums = reading.reading_sums(hypernet, decoder, group, STEP)
    losses, found = (sum(parts, []) for parts in zip(*(sums_of(decoder, hyper, e) for e in examples), strict=True))
    count = len(LAYERS)
    assert int(sums["count"]) == len(losses) // count > 3
    np.testing.assert_allclose(sums["loss"], sum(losses) / count, rtol=2e-3)
    np.testing.assert_allclose(sums["found"], sum(found) / count)


def test_updates_find_more_and_leave_the_rest(target, hyper, examples):
    params, told = init_hypernet(hyper, 0), []
    batch = batch_of(examples, PACKED)
    what = "memory", reading.TRAINED, reading.reading_sums
    size = 30, hyper, target.config, STEP
    after = with_part(params, *what, target.params, [batch] * 30, *size, lambda *means: told.append(means))
    assert [number for number, _ in told] == [1, 20, 30]
    first, last = told[0][1], told[-1][1]
    assert last["loss"] < 0.95 * first["loss"] and last["found"] >= first["found"]
    for name, before in params["memory"].items():
        same = np.array_equal(before, after["memory"][name])
        assert same == (name not in reading.TRAINED), name
    assert after["scaler_A"] is params["scaler_A"]


def test_training_begins_with_it(target_folder, target, tmp_path):
    turn = tuple(map(len, target.tokenizer.turn_wrapper))
    config = config_for(target_folder)
    with config.unlocked():
        config.lr, config.lr_multipliers, config.reading_steps = 0.0, {}, 2
    with pytest.raises(UserError, match="reading_steps is 2, but the hypernetwork has no memory"):
        loop.train(config, tmp_path / "none")
    read = {}
    for steps in (0, 2):
        with config.unlocked():
            config.reading_steps = steps
            config.hypernet.update({"memory_layers": LAYERS, "memory_tokens": 24 + sum(turn), "turn_tokens": turn})
        loop.train(config, tmp_path / str(steps))
        read[steps] = load_hypernet(tmp_path / str(steps) / "hypernet")[1]["memory"]
    changed = {name for name in read[0] if not np.array_equal(read[0][name], read[2][name])}
    assert changed == {"metric", "log_ridge"}
