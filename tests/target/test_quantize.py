"""A target in eight or four bits is the target with rounded weights, on one chip and on several."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx

from d2l import mesh as meshes
from d2l.errors import UserError
from d2l.target.decoder import abstract_decoder
from d2l.target.quantize import quantize_target
from d2l.train.pretrain import init_target
from tests.conftest import lively


@pytest.fixture(scope="module")
def model(target_config):
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_hidden_layers": 2}
    config = dataclasses.replace(target_config, layer_types=("full_attention",) * 2, **sizes)
    return config, lively(init_target(config, 0))


def logits(config, params, tokens):
    @jax.jit
    def run(params, tokens):
        whole = params | meshes.gather({name: a for name, a in params.items() if name != "layers"})
        return nnx.merge(abstract_decoder(config)[0], whole)(tokens)

    return run(params, tokens)


@pytest.mark.parametrize(("kind", "bits", "error"), [("int8", 8, 0.01), ("nf4", 4, 0.15)])
def test_it_is_the_target_with_rounded_weights(model, tokens, kind, bits, error):
    config, params = model
    narrow = quantize_target(params, kind)
    q_proj = narrow["layers"]["self_attn"]["q_proj"]
    assert jnp.iinfo(q_proj.qvalue.dtype).bits == bits
    is_narrow = lambda leaf: isinstance(leaf, qwix.QArray)  # noqa: E731
    rounded = jax.tree.map(lambda a: qwix.dequantize(a) if is_narrow(a) else a, narrow, is_leaf=is_narrow)
    for a, b in zip(jax.tree.leaves(rounded["layers"]), jax.tree.leaves(params["layers"]), strict=True):
        assert jnp.linalg.norm(a - b) <= error * jnp.linalg.norm(b)
    expected = logits(config, rounded, tokens)
    assert 1e-3 < float(jnp.abs(expected - logits(config, params, tokens)).max())
    np.testing.assert_allclose(logits(config, narrow, tokens), expected, rtol=1e-4, atol=1e-4)

    mesh = meshes.make_mesh({"fsdp": 4, "model": 2})
    with jax.set_mesh(mesh):
        placed = jax.device_put(narrow, meshes.param_shardings(mesh, narrow))
        split = placed["layers"]["self_attn"]["q_proj"].qvalue
        assert split.addressable_shards[0].data.size * 8 == split.size
        np.testing.assert_allclose(logits(config, placed, tokens), expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_quantised_is_named(model, target_config):
    with pytest.raises(UserError, match="int3"):
        quantize_target(model[1], "int3")
    with pytest.raises(UserError, match="48 inputs, nf4 needs a multiple of 64"):
        quantize_target(init_target(target_config, 0), "nf4")
