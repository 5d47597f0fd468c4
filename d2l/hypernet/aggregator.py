"""From context features to one embedding per adapter row: the Perceiver of the paper, or `direct` attention.

Letters: N rows of context tokens (times layers for per-layer features), P chunks packed in a row, T context tokens,
F feature width, Z latent width, Q queries of a chunk (latents or output queries), H heads, K key heads, G = H / K,
h head width.

Parameter names are those of the release's state dict; weights are [out, in], none has a bias.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from d2l import mesh
from d2l.hypernet.config import HypernetConfig
from d2l.target.product import float32_product

RMS_EPS = 1e-6
MLP_FACTOR = 4


def rms_norm(x: jax.Array, weight: nnx.Param) -> jax.Array:
    """Root mean square norm over the last axis, in float32."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + RMS_EPS)
    return x32.astype(x.dtype) * weight[...].reshape((1,) * (x.ndim - 1) + (-1,))


def uniform_linear(rngs: nnx.Rngs, d_in: int, d_out: int) -> nnx.Param:
    """Weight [d_out, d_in], uniform in +-1/sqrt(d_in)."""
    bound = d_in**-0.5
    return nnx.Param(jax.random.uniform(rngs.params(), (d_out, d_in), minval=-bound, maxval=bound))


def linear(x: jax.Array, weight: nnx.Param) -> jax.Array:
    """y = W x over the last axis."""
    return mesh.product("nti,oi->nto", x, weight[...], out=0)


@jax.custom_vjp
def whole_gradient(x: jax.Array) -> jax.Array:
    """x, whose gradient is computed before anything is made of it.

    A CPU turns the gradient of a product's output over for that of its weight. Fused with the elementwise gradients
    before it, that takes twenty times as long.
    """
    return x


whole_gradient.defvjp(lambda x: (x, None), lambda _, gradient: (jax.lax.optimization_barrier(gradient),))


def attend(q_NQHh: jax.Array, k_NTKh: jax.Array, v_NTKh: jax.Array, mask_NQT: jax.Array | None) -> jax.Array:
    """Grouped-query attention `[N, Q, H, h]` with the softmax in float32; a query that sees nothing takes the mean.

    As `jax.nn.dot_product_attention`, whose backward pass widens bfloat16 operands.
    """
    N, Q, H, h = q_NQHh.shape
    K = k_NTKh.shape[2]

    def dot(q, k, dtype):
        return jnp.einsum("nqkgh,ntkh->nkgqt", q, k, preferred_element_type=dtype)

    logits_NKGQT = float32_product(dot, q_NQHh.reshape(N, Q, K, H // K, h), k_NTKh) * h**-0.5
    if mask_NQT is not None:
        logits_NKGQT = jnp.where(mask_NQT[:, None, None], logits_NKGQT, jnp.finfo(jnp.float32).min)
    probs_NKGQT = jax.nn.softmax(logits_NKGQT, axis=-1).astype(v_NTKh.dtype)
    return jnp.einsum("nkgqt,ntkh->nqkgh", probs_NKGQT, v_NTKh).reshape(N, Q, H, h)


class GatedMLP(nnx.Module):
    """W_down (silu(W_gate x) * W_up x)."""

    def __init__(self, d_in: int, d_hidden: int, d_out: int, rngs: nnx.Rngs):
        self.gate_proj = uniform_linear(rngs, d_in, d_hidden)
        self.up_proj = uniform_linear(rngs, d_in, d_hidden)
        self.down_proj = uniform_linear(rngs, d_hidden, d_out)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = (whole_gradient(linear(x, weight)) for weight in (self.gate_proj, self.up_proj))
        return linear(jax.nn.silu(gate) * up, self.down_proj)


class LatentAttention(nnx.Module):
    """Grouped-query attention without positions or causal mask."""

    def __init__(self, config: HypernetConfig, rngs: nnx.Rngs):
        self.head_dim = config.head_dim
        d_q, d_kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = uniform_linear(rngs, config.latent_size, d_q)
        self.k_proj = uniform_linear(rngs, config.latent_size, d_kv)
        self.v_proj = uniform_linear(rngs, config.latent_size, d_kv)
        self.o_proj = uniform_linear(rngs, d_q, config.latent_size)

    def __call__(self, x_NQZ: jax.Array, ctx_NTZ: jax.Array, mask_NQT: jax.Array | None) -> jax.Array:
        def heads(x, weight):
            return linear(x, weight).reshape(*x.shape[:2], -1, self.head_dim)

        q, k, v = heads(x_NQZ, self.q_proj), heads(ctx_NTZ, self.k_proj), heads(ctx_NTZ, self.v_proj)
        o_NQHh = attend(q, k, v, mask_NQT)
        return linear(o_NQHh.reshape(*x_NQZ.shape[:2], -1), self.o_proj)


class PerceiverLayer(nnx.Module):
    """Attention, then a gated MLP, each between two norms; keys and values come from the context or the queries."""

    def __init__(self, config: HypernetConfig, rngs: nnx.Rngs, *, cross: bool):
        def norm():
            return nnx.Param(jnp.ones(config.latent_size))

        self.input_latents_layernorm = norm()
        if cross:
            self.input_context_layernorm = norm()
        self.self_attn = LatentAttention(config, rngs)
        self.post_attention_layernorm = norm()
        self.pre_ff_layernorm = norm()
        self.post_ff_layernorm = norm()
        self.mlp = GatedMLP(config.latent_size, MLP_FACTOR * config.latent_size, config.latent_size, rngs)
        self.cross = cross

    def __call__(self, x_CQZ: jax.Array, ctx_NTZ: jax.Array, mask_NPT: jax.Array | None) -> jax.Array:
        """Queries of C = N * P chunks; `mask_NPT` is True at the tokens of each, None where a row is one chunk."""
        normed_CQZ = rms_norm(x_CQZ, self.input_latents_layernorm)
        if self.cross:
            # All queries of a row side by side, each seeing the tokens of its own chunk.
            N, (C, Q, Z) = ctx_NTZ.shape[0], x_CQZ.shape
            P = C // N
            mask_NQT = None if mask_NPT is None else jnp.repeat(mask_NPT, Q, axis=1)
            rows_NQZ = normed_CQZ.reshape(N, P, Q, Z).reshape(N, P * Q, Z)
            ctx_NTZ = rms_norm(ctx_NTZ, self.input_context_layernorm)
            attn_NQZ = self.self_attn(rows_NQZ, ctx_NTZ, mask_NQT)
            attn_CQZ = attn_NQZ.reshape(N, P, Q, Z).reshape(C, Q, Z)
        else:
            attn_CQZ = self.self_attn(normed_CQZ, normed_CQZ, None)
        x_CQZ = x_CQZ + rms_norm(attn_CQZ, self.post_attention_layernorm)
        mlp_CQZ = self.mlp(rms_norm(x_CQZ, self.pre_ff_layernorm))
        return x_CQZ + rms_norm(mlp_CQZ, self.post_ff_layernorm)


def layer_order(num_blocks: int, num_self_attn: int, shared: bool) -> tuple[int, ...]:
    """Which stored layer runs at each place of a resampler.

    A block is a cross-attention layer and `num_self_attn` self-attention layers. With shared weights every block after
    the first reuses the second block's cross-attention and the first block's self-attention; a stored layer is named
    after the first place that it runs at, as in the release.
    """
    size = 1 + num_self_attn
    order = []
    for place in range(num_blocks * size):
        block, offset = divmod(place, size)
        if shared and offset:
            order.append(offset)
        elif shared:
            order.append(min(block, 1) * size)
        else:
            order.append(place)
    return tuple(order)


class Resampler(nnx.Module):
    """Learned queries that read a context through cross-attention (and optional self-attention) layers."""

    def __init__(
        self,
        config: HypernetConfig,
        num_queries: int,
        num_blocks: int,
        num_self_attn: int,
        shared: bool,
        rngs: nnx.Rngs,
    ):
        self.order = layer_order(num_blocks, num_self_attn, shared)
        self.latents = nnx.Param(jax.random.normal(rngs.params(), (num_queries, config.latent_size)))
        self.layers = nnx.Dict(
            {
                str(index): PerceiverLayer(config, rngs, cross=index % (1 + num_self_attn) == 0)
                for index in sorted(set(self.order))
            }
        )
        self.norm = nnx.Param(jnp.ones(config.latent_size))

    def __call__(self, ctx_NTZ: jax.Array, mask_NPT: jax.Array | None) -> jax.Array:
        """Embeddings `[N * P, Q, Z]` of the P chunks in each row; P is 1 without a mask."""
        latents_QZ = self.latents[...]
        chunks = ctx_NTZ.shape[0] * (1 if mask_NPT is None else mask_NPT.shape[1])
        x_CQZ = jnp.broadcast_to(latents_QZ[None], (chunks, *latents_QZ.shape))
        for index in self.order:
            x_CQZ = self.layers[str(index)](x_CQZ, ctx_NTZ, mask_NPT)
        return rms_norm(x_CQZ, self.norm)


class Aggregator(nnx.Module):
    """Features to output-query embeddings (paper section 3; SPEC 3).

    `perceiver`: features -> N latents -> output queries. `direct`: the output queries attend to the features
    themselves, in `num_blocks` layers. There are M*r output queries for a feature of one layer, L*M*r for one of the
    whole target.
    """

    def __init__(self, config: HypernetConfig, rngs: nnx.Rngs):
        num_queries = config.num_modules * config.rank * (1 if config.per_layer else config.num_layers)
        width = config.feature_size
        self.modality_projection = GatedMLP(width, MLP_FACTOR * width, config.latent_size, rngs)
        blocks = (config.num_blocks, config.num_self_attn_per_block, config.shared_weights)
        if config.aggregator == "perceiver":
            self.encoder = Resampler(config, config.num_latents, *blocks, rngs)
            self.decoder = Resampler(config, num_queries, 1, 0, False, rngs)
        else:
            self.encoder = None
            self.decoder = Resampler(config, num_queries, *blocks, rngs)

    def __call__(self, features_NTF: jax.Array, mask_NPT: jax.Array) -> jax.Array:
        """Features `[N, T, F]` and the tokens of each of a row's P chunks, bool, to embeddings `[N * P, Q, Z]`."""
        ctx_NTZ = self.modality_projection(features_NTF)
        if self.encoder is None:
            return self.decoder(ctx_NTZ, mask_NPT)
        return self.decoder(self.encoder(ctx_NTZ, mask_NPT), None)
