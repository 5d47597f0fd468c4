"""An adapter without the sink's direction leaves the first token of every prompt as it is."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from d2l.adapter import compose
from d2l.errors import UserError
from d2l.hypernet.hypernet import abstract_hypernet, init_hypernet
from d2l.hypernet.sink import project_out, sink_directions
from d2l.hypernet.store import load_hypernet
from d2l.target.decoder import abstract_decoder
from d2l.target.weights import load_target
from d2l.train.loop import train
from tests.conftest import hypernet_config, lively
from tests.train.test_loop import config_for

MODULES = (("down_proj",), ("down_proj", "o_proj", "q_proj"))


def _directions(target, modules, token):
    decoder = nnx.merge(abstract_decoder(target.config)[0], target.params)
    return jax.jit(lambda: sink_directions(decoder, target.config, modules, token))()


@pytest.mark.parametrize("modules", MODULES)
def test_first_token_is_untouched_and_the_others_are_not(target_folder, modules):
    target = load_target(target_folder)
    decoder = nnx.merge(abstract_decoder(target.config)[0], target.params)
    tokens = jnp.array([[3, 7, 11, 5], [3, 2, 2, 9]])
    config = dataclasses.replace(hypernet_config(target.config, modules), scaler_b_init=1.0)
    params = lively(init_hypernet(config, 0))
    projected = project_out(params, config, _directions(target, modules, 3))
    features = jax.random.normal(jax.random.key(1), (2, 6, config.feature_size))

    @jax.jit
    def hidden(params):
        hypernet = nnx.merge(abstract_hypernet(config)[0], params)
        place = (jnp.arange(2), jnp.zeros(2, jnp.int32))
        chunks = hypernet(features, jnp.ones((2, 6), bool))
        factors, _ = compose(chunks, *place, num_contexts=2, max_chunks=1, bias=hypernet.bias())
        return decoder.run_blocks(decoder.embed(tokens), adapter=factors)[0]

    plain = jax.jit(lambda: decoder.run_blocks(decoder.embed(tokens))[0])()
    moved = hidden(projected)
    # Of the whole vector: sums of another order, which machines differ in, round its small entries like its large ones.
    assert jnp.linalg.norm(moved[:, 0] - plain[:, 0]) <= 5e-6 * jnp.linalg.norm(plain[:, 0])
    assert jnp.abs(moved[:, 1:] - plain[:, 1:]).max() > 0.01
    assert jnp.abs(hidden(params)[:, 0] - plain[:, 0]).max() > 0.01


def test_training_keeps_the_direction_out(target_folder, tmp_path):
    config = config_for(target_folder)
    with config.unlocked():
        config.project_sink = True
        config.stages = {"one": config.stages.one}
    train(config, tmp_path)
    hyper, params, _ = load_hypernet(tmp_path / "hypernet")
    target = load_target(target_folder)
    directions = _directions(target, hyper.target_modules, target.tokenizer.turn_wrapper[0][0])
    projected = project_out(params, hyper, directions)
    fresh = init_hypernet(hyper, 0)
    assert jnp.abs(projected["head"] - params["head"]).max() < 1e-6 < jnp.abs(fresh["head"] - params["head"]).max()
    with pytest.raises(UserError, match="project_sink"):
        with config.unlocked():
            config.mesh, config.packs = {"data": -1, "fsdp": 1, "model": 1}, 8
            config.stages.one.contexts = 8
        train(config, tmp_path / "mesh")
