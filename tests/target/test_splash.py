"""The splash kernel's program, interpreted, against `attend`: values and gradients, alone and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from d2l import mesh as meshes
from d2l.target.attention import attend
from d2l.target.splash import splash_attention, usable

B, T, N, K, H = 2, 256, 4, 2, 128  # rows, tokens, heads, key heads, head width
WINDOW, SCALE = 40, 0.1


@pytest.fixture(scope="module")
def arrays():
    shapes = {"q": (B, T, N, H), "k": (B, K, T, H), "v": (B, K, H, T), "w": (B, T, N, H)}
    out = {name: jax.random.normal(jax.random.key(i), shape) for i, (name, shape) in enumerate(shapes.items())}
    ends = np.sort(np.random.default_rng(0).integers(1, T, (B, 3)), axis=-1)
    segments = (np.arange(T)[None, :, None] >= ends[:, None]).sum(-1)
    return out | {"segments": jnp.asarray(np.where(segments == 3, -1, segments), jnp.int32)}


def outputs(attention, arrays):
    """The attention, and the gradients of a weighted sum of it."""

    def total(q, k, v, w, segments):
        out = attention(q, k, v, segments)
        return jnp.sum(out * w), out

    qkv = arrays["q"], arrays["k"], arrays["v"]
    return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*qkv, arrays["w"], arrays["segments"])


@pytest.mark.parametrize(("sliding", "softcap"), [(True, 5.0), (False, None)])
@pytest.mark.parametrize("sharded", [False, True])
def test_kernel_equals_attend(arrays, sliding, softcap, sharded):
    def expected(q, k, v, segments):
        index = jnp.broadcast_to(jnp.arange(T)[None], segments.shape)
        window = jnp.int32(WINDOW if sliding else T)
        return attend(
            q, k, v, q_index_BT=index, scale=SCALE, softcap=softcap, window=window,
            q_segments_BT=segments, k_segments_BS=segments,
        )  # fmt: skip

    def kernel(q, k, v, segments):
        options = {"scale": SCALE, "softcap": softcap, "window": WINDOW, "sliding": jnp.asarray(sliding)}
        return splash_attention(q, k, v, segments_BT=segments, interpret=True, **options)

    reference = outputs(expected, arrays)
    if sharded:  # over heads
        mesh = meshes.make_mesh({"data": 4, "model": 2})
        heads = {"q": P(None, None, "model"), "w": P(None, None, "model"), "k": P(None, "model"), "v": P(None, "model")}
        with jax.set_mesh(mesh):
            placed = {n: jax.device_put(a, NamedSharding(mesh, heads.get(n, P()))) for n, a in arrays.items()}
            got = jax.device_get(outputs(kernel, placed))
    else:
        got = outputs(kernel, arrays)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_it_is_for_tpus_and_whole_blocks():
    assert not usable(T, H)  # this is a CPU
    assert meshes.platform() == "cpu"
