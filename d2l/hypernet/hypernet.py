"""The hypernetwork: context features in, LoRA factors of one chunk out.

Letters: N rows of context tokens, P chunks packed in a row, C chunks, L target layers, M target modules (sorted by
name), r rank, T tokens, F feature width, Z latent width, H hidden width of the residual MLP.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from d2l import mesh
from d2l.hypernet.aggregator import MLP_FACTOR, Aggregator
from d2l.hypernet.config import HypernetConfig
from d2l.hypernet.copies import B_START, Copies, Sources
from d2l.hypernet.memory import Memory
from d2l.hypernet.relevance import Relevance

LAYER_NORM_EPS = 1e-5
GATE_START = 3.0  # logit of a fresh gate: nearly open, so that a trained hypernetwork keeps its function
Factors = dict[str, dict[str, jax.Array]]


class LayerNorm(nnx.Module):
    """Layer norm over the last axis with scale and bias, in float32."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + LAYER_NORM_EPS)
        shape = (1,) * (x.ndim - 1) + (-1,)
        scale, bias = self.scale[...].reshape(shape), self.bias[...].reshape(shape)
        return (x32 * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def product_per_layer(x_CLMri: jax.Array, w: jax.Array) -> jax.Array:
    """Last axis of `[C, L, M, r, i]` times `[i, o]`, or times `[L, i, o]` or `[L, M, i, o]`, one for each L (and M).

    Layers go first meanwhile: in any other order a CPU's product of batches runs at a tenth of its rate.
    """
    if w.ndim == 2:
        return mesh.product("clmri,io->clmro", x_CLMri, w, out=1)
    x_LMCri = jnp.transpose(x_CLMri, (1, 2, 0, 3, 4))
    spec = "lmcri,lmio->lmcro" if w.ndim == 4 else "lmcri,lio->lmcro"
    return jnp.transpose(mesh.product(spec, x_LMCri, w, out=w.ndim - 1), (2, 0, 1, 3, 4))


class ResidualMLP(nnx.Module):
    """e + LN(W2 silu(W1 LN(e) + b1) + b2); W1, W2 of each target layer's own, or one pair for all."""

    def __init__(self, config: HypernetConfig, rngs: nnx.Rngs):
        Z, H = config.latent_size, MLP_FACTOR * config.latent_size
        own = (config.num_layers,) if config.per_layer_processing else ()

        def uniform(fan_in, *shape):
            return nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-(fan_in**-0.5), maxval=fan_in**-0.5))

        self.norm_in = LayerNorm(Z)
        self.w1, self.b1 = uniform(Z, *own, Z, H), uniform(Z, *own, H)
        self.w2, self.b2 = uniform(H, *own, H, Z), uniform(H, *own, Z)
        self.norm_out = LayerNorm(Z)

    def __call__(self, e_CLMrZ: jax.Array) -> jax.Array:
        def affine(x, weight, bias):
            bias = bias[...].reshape(1, -1, 1, 1, bias.shape[-1])
            return product_per_layer(x, weight[...]) + bias.astype(x.dtype)

        x = jax.nn.silu(affine(self.norm_in(e_CLMrZ), self.w1, self.b1))
        return e_CLMrZ + self.norm_out(affine(x, self.w2, self.b2))


class Hypernet(nnx.Module):
    """Generates the A and B rows of every target layer and module from one chunk's features (SPEC 3).

    The parameters are used in the dtype they are given in: for bfloat16 compute cast the tree, not the masters.
    """

    def __init__(self, config: HypernetConfig, rngs: nnx.Rngs):
        L, M, r, Z = config.num_layers, config.num_modules, config.rank, config.latent_size
        self.config = config
        self.aggregator = Aggregator(config, rngs)
        self.pre_head = nnx.Dict({str(i): ResidualMLP(config, rngs) for i in range(config.num_pre_head_layers)})
        head_shape = (L, Z, config.d_lora) if M == 1 else (L, M, Z, config.d_lora)
        head_std = 0.5 / (Z + config.d_lora * r) ** 0.5
        self.head = nnx.Param(head_std * jax.random.normal(rngs.params(), head_shape))
        sizes = dict(zip(config.target_modules, zip(config.d_in, config.d_out, strict=True), strict=True))
        if config.use_bias:
            self.bias_A = nnx.Dict(
                {
                    name: nnx.Param(0.2 / (i * r) ** 0.5 * jax.random.normal(rngs.params(), (L, r, i)))
                    for name, (i, _) in sizes.items()
                }
            )
            self.bias_B = nnx.Dict({name: nnx.Param(jnp.zeros((L, r, o))) for name, (_, o) in sizes.items()})
        self.scaler_A = nnx.Dict({name: nnx.Param(jnp.ones((L, r))) for name in sizes})
        init_B = jnp.float32(config.scaler_b_init)  # typed: a weak type would make the second step compile again
        self.scaler_B = nnx.Dict({name: nnx.Param(jnp.full((L, r), init_B)) for name in sizes})
        if config.row_gate:
            start = jnp.full((L, M, r), jnp.float32(GATE_START))
            self.gate = nnx.Dict({"weight": nnx.Param(jnp.zeros((L, M, Z))), "bias": nnx.Param(start)})
        if config.copy_size:
            self.copies = Copies(config, rngs)
            self.scaler_copy = nnx.Dict({name: nnx.Param(jnp.full((L, r), jnp.float32(B_START))) for name in sizes})
        if config.memory_layers:
            self.memory = Memory(config, rngs)
        if config.relevance:
            self.relevance = Relevance(config.feature_size)

    def __call__(
        self,
        features: jax.Array,
        mask: jax.Array,
        *,
        sources: Sources | None = None,
        chunks_C: jax.Array | None = None,
        iterative: bool = False,
        remat: bool = False,
    ) -> Factors:
        """LoRA factors of every chunk.

        Args:
          features: `[N, T, F]`, or `[N, L, T, F]` for per-layer activations.
          mask: bool, True at the tokens of a chunk: `[N, T]`, or `[N, P, T]` for P chunks packed in each row.
          sources: what rows are copied from (`read_context`); only with `copy_size` or `memory_layers`.
          chunks_C: int32, which of the N * P chunks to write factors for (row * P + place in the row); default all.
          iterative: run the aggregator on one layer's feature after the other (small peak memory) instead of on all at
            once; the result is the same. Per-layer activations only.
          remat: recompute the aggregator in the backward pass, one layer's feature at a time.

        Returns:
          `{module: {"A": [C, L, r, d_in], "B": [C, L, r, d_out]}}`, without scale and learned bias. With
          `memory_layers` also keys and values of a memory (`Memory`), which `solve` makes factors of when the chunks
          of a context are together.
        """
        c = self.config
        mask_NPT = mask if mask.ndim == 3 else mask[:, None]
        e_CqZ = self.embed(features, mask_NPT, iterative or remat, remat)
        copies = self.copies(e_CqZ, features, mask_NPT, sources) if c.copy_size else None
        memory = self.memory(features, mask_NPT, sources["memory"], chunks_C) if c.memory_layers else {}
        if chunks_C is not None:
            e_CqZ, copies = jax.tree.map(lambda a: jnp.take(a, chunks_C, axis=0), (e_CqZ, copies))
        return self.to_factors(e_CqZ.reshape(-1, c.num_layers, c.num_modules, c.rank, c.latent_size), copies) | memory

    def solve(self, factors: Factors) -> Factors:
        """Composed factors `[L, C, R, d]` with the keys of a memory as its A rows; without a memory as they are."""
        return self.memory.solve(factors) if self.config.memory_layers else factors

    def embed(self, features: jax.Array, mask_NPT: jax.Array, iterative: bool, remat: bool) -> jax.Array:
        """Output-query embeddings `[N * P, L * M * r, Z]`."""
        graphdef, params = nnx.split(self.aggregator)
        narrow = jax.tree.map(lambda a: a.dtype, params)
        # Scanned over layers, its gradients are summed in the dtype that it has outside.
        wide = jax.tree.map(lambda a: a.astype(jnp.float32), params) if iterative else params

        def aggregate(features_NTF, mask_NPT):
            params = jax.tree.map(lambda a, dtype: a.astype(dtype), wide, narrow)
            return nnx.merge(graphdef, params)(features_NTF, mask_NPT)

        if remat:
            aggregate = jax.checkpoint(aggregate, prevent_cse=not self.config.per_layer)
        if not self.config.per_layer:
            return aggregate(features, mask_NPT)
        N, L, T, F = features.shape
        Z, P = self.config.latent_size, mask_NPT.shape[1]
        if iterative:
            e_LCqZ = jax.lax.map(lambda features_NTF: aggregate(features_NTF, mask_NPT), jnp.swapaxes(features, 0, 1))
            return jnp.swapaxes(e_LCqZ, 0, 1).reshape(N * P, -1, Z)
        e_MqZ = aggregate(features.reshape(N * L, T, F), jnp.repeat(mask_NPT, L, axis=0))
        e_NPLqZ = jnp.swapaxes(e_MqZ.reshape(N, L, P, -1, Z), 1, 2)
        return e_NPLqZ.reshape(N * P, L, -1, Z).reshape(N * P, -1, Z)

    def to_factors(self, e_CLMrZ: jax.Array, copies: Factors | None = None) -> Factors:
        """Residual MLPs, unit length, head, learned scalers, copies and gates on the output-query embeddings."""
        c = self.config
        for i in range(c.num_pre_head_layers):
            e_CLMrZ = self.pre_head[str(i)](e_CLMrZ)
        e32 = e_CLMrZ.astype(jnp.float32)
        e_CLMrZ = (e32 / jnp.linalg.norm(e32, axis=-1, keepdims=True)).astype(e_CLMrZ.dtype)
        gate_CLMr = self.gates(e_CLMrZ)
        rows_CLMrd = product_per_layer(e_CLMrZ, self.head[...])
        factors = {}
        for m, (name, d_in, d_out) in enumerate(zip(c.target_modules, c.d_in, c.d_out, strict=True)):
            A_CLri, B_CLro = rows_CLMrd[:, :, m, :, :d_in], rows_CLMrd[:, :, m, :, d_in : d_in + d_out]
            A_CLri = A_CLri * self.scaler_A[name][...][None, :, :, None]
            B_CLro = B_CLro * self.scaler_B[name][...][None, :, :, None]
            if copies is not None:
                A_CLri = A_CLri + copies[name]["A"]
                B_CLro = B_CLro + copies[name]["B"] * self.scaler_copy[name][...][None, :, :, None]
            factors[name] = {"A": A_CLri, "B": B_CLro if gate_CLMr is None else B_CLro * gate_CLMr[:, :, m, :, None]}
        return factors

    def gates(self, e_CLMrZ: jax.Array) -> jax.Array | None:
        """How far each row is open, `[C, L, M, r]` in (0, 1), from its embedding of unit length; None without gates."""
        if not self.config.row_gate:
            return None
        logits_CLMr = jnp.sum(e_CLMrZ * self.gate["weight"][...][None, :, :, None], axis=-1, dtype=jnp.float32)
        return jax.nn.sigmoid(logits_CLMr + self.gate["bias"][...][None].astype(jnp.float32)).astype(e_CLMrZ.dtype)

    def bias(self) -> Factors | None:
        """The learned adapter that all documents share: `{module: {"A": [L, r, d_in], "B": [L, r, d_out]}}`."""
        if not self.config.use_bias:
            return None
        return {name: {"A": self.bias_A[name][...], "B": self.bias_B[name][...]} for name in self.config.target_modules}


def abstract_hypernet(config: HypernetConfig) -> tuple[nnx.GraphDef, Mapping[str, Any]]:
    """Graph definition and parameter shapes, nothing allocated."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Hypernet(config, nnx.Rngs(0))))
    return graphdef, nnx.to_pure_dict(state)


def init_hypernet(config: HypernetConfig, seed: int) -> Mapping[str, Any]:
    """Float32 parameters of a fresh hypernetwork, a pure function of config and seed."""

    def init(key):
        return nnx.to_pure_dict(nnx.state(Hypernet(config, nnx.Rngs(params=key))))

    return jax.jit(init)(jax.random.key(seed))
