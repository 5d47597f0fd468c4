"""The attention sink: what every adapted projection reads at the first token of any prompt.

A prompt always starts with the same token (of the chat turn), which sees only itself, so the input of each projection
there is one fixed vector. In most models it is huge at a few `down_proj` (massive activations), and whatever an A row
has along it moves the sink of every prompt. Without that direction an A row leaves the first token as it is.

A rows are linear in the head's columns and in `bias_A`, so the direction is projected out of those: the hypernetwork
stays what it was in shape and in use.

Letters: L layers, d input width of a module, D hidden.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from d2l.hypernet.config import HypernetConfig
from d2l.target.config import TargetConfig
from d2l.target.decoder import Decoder


def sink_directions(decoder: Decoder, config: TargetConfig, modules: Sequence[str], token: int) -> dict[str, jax.Array]:
    """Unit vectors float32 `{module: [L, d]}` along each module's input at the first token, whose id is `token`.

    With y = W x + B^T (A x), the gradient of anything with respect to an A of rank one is, at zero, a multiple of x.
    """
    # The first token sees itself whatever its query and key are; they are made of what its value is made of.
    probed = {name: "v_proj" if name in ("q_proj", "k_proj") else name for name in modules}
    layers, sizes, dtype = config.num_hidden_layers, config.module_sizes, decoder.embed_tokens.dtype

    def random(name: str) -> jax.Array:
        return 1e-3 * jax.random.normal(jax.random.key(0), (layers, 1, 1, sizes[name][1]), dtype)

    B = {name: random(name) for name in probed.values()}
    probe_D = jax.random.normal(jax.random.key(1), (config.hidden_size,))

    def read(A: dict[str, jax.Array]) -> jax.Array:
        factors = {name: {"A": A[name], "B": B[name]} for name in B}
        x_11D, _, _ = decoder.run_blocks(decoder.embed(jnp.full((1, 1), token, jnp.int32)), adapter=factors)
        return x_11D[0, 0].astype(jnp.float32) @ probe_D

    grads = jax.grad(read)({name: jnp.zeros((layers, 1, 1, sizes[name][0]), dtype) for name in B})
    x = {name: g[:, 0, 0].astype(jnp.float32) for name, g in grads.items()}
    return {name: x[of] / jnp.linalg.norm(x[of], axis=-1, keepdims=True) for name, of in probed.items()}


def project_out(
    params: Mapping[str, Any], config: HypernetConfig, directions: Mapping[str, jax.Array]
) -> dict[str, Any]:
    """Parameters of a hypernetwork, or an update of them, whose A rows are orthogonal to the directions."""
    head = params["head"]
    for m, (name, d_in) in enumerate(zip(config.target_modules, config.d_in, strict=True)):
        rows = (..., slice(d_in)) if config.num_modules == 1 else (slice(None), m, slice(None), slice(d_in))
        head = head.at[rows].set(_orthogonal(head[rows], directions[name]))
    projected = dict(params) | {"head": head}
    if config.use_bias:
        projected["bias_A"] = {name: _orthogonal(a, directions[name]) for name, a in params["bias_A"].items()}
    return projected


def _orthogonal(a_Lnd: jax.Array, v_Ld: jax.Array) -> jax.Array:
    v_Ld = v_Ld.astype(a_Lnd.dtype)
    return a_Lnd - jnp.einsum("lnd,ld->ln", a_Lnd, v_Ld)[..., None] * v_Ld[:, None, :]
