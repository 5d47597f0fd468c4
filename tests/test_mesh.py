"""The mesh: sizes are checked with both numbers, and every large parameter has a place on it."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from d2l import mesh as meshes
from d2l.errors import UserError
from d2l.hypernet.hypernet import abstract_hypernet
from d2l.target.decoder import abstract_decoder
from d2l.train.optimizer import OptimizerConfig, make_optimizer
from d2l.train.step import init_state
from tests.conftest import hypernet_config


def test_one_axis_takes_what_is_left():
    assert meshes.make_mesh({"data": -1, "model": 2}).shape == {"data": 4, "fsdp": 1, "model": 2}
    assert meshes.make_mesh({}, jax.devices()[:1]).shape == {"data": 1, "fsdp": 1, "model": 1}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3, "model": -1}, "multiple of 3 devices, there are 8"),
        ({"data": 4}, "needs 4 devices, there are 8"),
        ({"data": -1, "model": -1}, "-1 for at most one axis"),
        ({"data": -1, "model": 0}, "positive sizes"),
        ({"tensor": 8}, "unknown axes"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, message):
    with pytest.raises(UserError, match=message):
        meshes.make_mesh(sizes)


def test_what_a_mesh_does_not_divide_is_named_with_both_numbers():
    mesh = meshes.make_mesh({"data": 2, "model": 4})
    assert meshes.split_packs(6, mesh) == (3, 2) and meshes.split_packs(6, None) == (6, 1)
    with pytest.raises(UserError, match="5 packs cannot be split over data x fsdp = 2"):
        meshes.split_packs(5, mesh)
    with pytest.raises(UserError, match="num_key_value_heads is 6, which the 4 devices"):
        meshes.check_divisible(mesh, num_attention_heads=8, num_key_value_heads=6)
    with pytest.raises(UserError, match="q_proj has an axis of 10, which 4 devices"):
        meshes.param_shardings(mesh, {"q_proj": jax.ShapeDtypeStruct((10, 8), jnp.float32)})


def test_every_matrix_of_a_train_state_has_its_place(target_config):
    """Only vectors and the small arrays named by module are whole on every chip; moments lie as their parameters."""
    mesh = meshes.make_mesh({"fsdp": 4, "model": 2})
    hyper = hypernet_config(target_config, ("down_proj", "q_proj"), num_pre_head_layers=1, head_dim=8)
    params = abstract_hypernet(hyper)[1]
    optimizer = make_optimizer(OptimizerConfig(), lambda _: 1e-3, params)
    state = jax.eval_shape(lambda: init_state(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), params), optimizer))
    shardings = meshes.param_shardings(mesh, {"state": state, "frozen": abstract_decoder(target_config)[1]})
    specs = {
        jax.tree_util.keystr(path, simple=True, separator="."): s.spec
        for path, s in jax.tree_util.tree_leaves_with_path(shardings)
    }
    whole = {name for name, spec in specs.items() if not any(spec)}
    small = ("norm", "bias", "scale", "latents", "b2", "count", "step", "bias_A", "bias_B", "scaler_A", "scaler_B")
    assert all(any(part in name for part in small) for name in whole), whole
    assert specs["frozen.layers.mlp.down_proj"] == P(None, "fsdp", "model")
    assert specs["state.params.head"] == P(None, None, ("model", "fsdp"), None)
    for name in ("mu", "nu"):
        moments = [
            spec
            for key, spec in specs.items()
            if f".{name}." in key and key.endswith("aggregator.encoder.layers.0.self_attn.q_proj")
        ]
        assert moments == [P("model", "fsdp")]
