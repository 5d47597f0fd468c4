"""Adapter rows that remember a document token by token: one ridge regression, no training step (not in the paper).

In a few layers each token of a chunk has a row of its own. Its key is the input that `down_proj` has there, its value
the direction of the word that follows. Added up as they are, rows answer to everything that resembles them, and the
rows of one text resemble each other; so A is what a ridge regression makes of all keys of a document together,

    A = (K K^T + ridge I)^-1 K,   B^T A = the matrix that maps each key to its value, in the least squares

(the delta rule of fast weights in closed form: Schlag et al., 2021, arXiv 2102.11174; as edits of a model's
`down_proj`: Meng et al., 2023, arXiv 2210.07229). What is learned: how much each token says, how strong rows are, which
numbers of a key count, how a key looks from a question, and in which directions it differs between a document and an
answer: these count for less in the regression (`noise_maps`), so that keys are told apart by what stays the same. And
what a value has to be in a layer far below the head, so that the word is said at its end (`value_map`).

A memory's factors stand beside those of the modules under `down_proj@22`, 22 being the layer; their layer axis is 1.

Letters: N rows of context tokens, P chunks packed in a row, C chunks (or contexts), T tokens of a row, m rows of a
chunk's memory, R rows of a context's, F feature width, Z width of the gates, n memory layers, i and o input and output
width of `down_proj`, S width of a translation, s directions of noise.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from d2l.hypernet.config import MEMORY_MODULE, HypernetConfig
from d2l.target.factors import memory_name

GATE_WIDTH = 128
GATE_START = 2.0  # logit of a fresh gate
LEAST = 1e-6
# What a value is made of: the word after a token, the token itself, the word after the next.
PARTS = 3


class Places(NamedTuple):
    """Where the tokens of chunks stand in their rows."""

    row_C: jax.Array
    start_C: jax.Array
    length_C1: jax.Array
    place_Cm: jax.Array

    @classmethod
    def of(cls, mask_NPT: jax.Array, chunks_C: jax.Array | None, m: int) -> "Places":
        """Of the first m tokens of each chunk; `mask_NPT` and `chunks_C` as in `Hypernet`."""
        N, P, T = mask_NPT.shape
        mask_CT = mask_NPT.reshape(N * P, T)
        row_C = jnp.arange(N * P) // P
        if chunks_C is not None:
            mask_CT, row_C = jnp.take(mask_CT, chunks_C, axis=0), chunks_C // P
        place_Cm = jnp.broadcast_to(jnp.arange(m)[None], (len(row_C), m))
        return cls(row_C, jnp.argmax(mask_CT, axis=1), jnp.sum(mask_CT, axis=1)[:, None], place_Cm)

    def take(self, a_NT: jax.Array, shift: int = 0) -> jax.Array:
        """`[C, m, ...]`, what `[N, T, ...]` has at each token, or `shift` tokens later."""
        index_Cm = jnp.minimum(self.start_C[:, None] + self.place_Cm + shift, a_NT.shape[1] - 1)
        return a_NT[self.row_C[:, None], index_Cm]

    def says(self, turn_tokens: tuple[int, int], shift: int = 1) -> jax.Array:
        """bool `[C, m]`, the tokens of a document (not of its turn) whose next one, `shift` later, is of it too."""
        before, after = turn_tokens
        return (self.place_Cm >= before) & (self.place_Cm + shift < self.length_C1 - after)


class Memory(nnx.Module):
    """Keys and values of the tokens of a chunk, and the regression over those of a context."""

    def __init__(self, config: HypernetConfig, rngs: nnx.Rngs):
        n, S, F = len(config.memory_layers), config.memory_size, config.feature_size
        place = config.target_modules.index(MEMORY_MODULE)
        i, o = config.d_in[place], config.d_out[place]

        def normal(fan_in: int, *shape: int) -> nnx.Param:
            return nnx.Param(fan_in**-0.5 * jax.random.normal(rngs.params(), shape))

        def full(value: float, *shape: int) -> nnx.Param:
            return nnx.Param(jnp.full(shape, jnp.float32(value)))

        self.config = config
        self.gate_in, self.gate_out = normal(F, F, GATE_WIDTH), full(0.0, GATE_WIDTH, n * PARTS)
        self.gate_bias = full(0.0, n * PARTS)
        self.metric = full(0.0, n, i)  # log weight of each number of a key
        if S:
            self.seen, self.asked = normal(i, n, i, S), full(0.0, n, S, i)
        if config.memory_noise:
            noise = jax.random.normal(rngs.params(), (n, i, config.memory_noise))
            self.noise_in, self.noise_out = nnx.Param(noise), full(0.0, n, i, config.memory_noise)
        self.gain = full(1.0, n, PARTS, o)
        if config.memory_value_map:
            self.value_map = full(0.0, n, o, o)
        self.log_strength, self.log_ridge = full(0.0, n), full(0.0, n)

    def __call__(
        self, features_NTF: jax.Array, mask_NPT: jax.Array, sources: dict[str, Any], chunks_C: jax.Array | None
    ) -> dict[str, dict[str, jax.Array]]:
        """Keys and values of chunks, which `solve` makes factors of.

        Args:
          mask_NPT: bool, the tokens of each chunk, which stand together.
          sources: as `read_context` returns them under `memory`.
          chunks_C: as in `Hypernet`.

        Returns:
          `{name: {"A": [C, 1, m, i], "B": [C, 1, m, o]}}`: keys of length 1, zero where there is no token and at the
          first one, or with `memory_skip_first` the direction of the first one itself; values zero at the last token
          and those of the chat turn.
        """
        c = self.config
        places = Places.of(mask_NPT, chunks_C, c.memory_tokens)
        tokens, place_Cm, length_C1 = places.take, places.place_Cm, places.length_C1
        real_Cm = place_Cm < length_C1
        said_Cm = places.says(c.turn_tokens)
        hidden = jax.nn.silu(tokens(features_NTF) @ self.gate_in[...])
        part_Cmnk = (hidden @ self.gate_out[...] + self.gate_bias[...][None, None]).reshape(*place_Cm.shape, -1, PARTS)
        open_Cmn = jax.nn.sigmoid(part_Cmnk[..., 0] + GATE_START)
        second_Cm = places.says(c.turn_tokens, 2)
        words = [tokens(sources["words"], shift) for shift in (1, 0, 2)]
        words[2] = jnp.where(second_Cm[..., None], words[2], 0)
        factors = {}
        for j, layer in enumerate(c.memory_layers):
            h_Cmi = tokens(sources["inputs"][j]).astype(jnp.float32)
            # The first token of any text is huge in some layers; what a key has along it would move every prompt's.
            sink_C1i = h_Cmi[:, :1]
            sink_C1i = sink_C1i / jnp.maximum(jnp.linalg.norm(sink_C1i, axis=-1, keepdims=True), LEAST)
            k_Cmi = _without(h_Cmi, sink_C1i)
            size_Cm1 = jnp.linalg.norm(k_Cmi, axis=-1, keepdims=True)
            k_Cmi = jnp.where((real_Cm & (place_Cm > 0))[..., None], k_Cmi / jnp.maximum(size_Cm1, LEAST), 0.0)
            if c.memory_skip_first:  # `solve` takes it from there
                k_Cmi = k_Cmi.at[:, :1].set(jnp.where(real_Cm[:, :1, None], sink_C1i, 0.0))
            # A residual stream of length 1 would be moved by `strength` where a key is met again.
            strength = self.config.memory_strength * jnp.exp(self.log_strength[j].astype(jnp.float32))
            length_Cm1 = jnp.linalg.norm(tokens(sources["stream"][j]).astype(jnp.float32), axis=-1, keepdims=True)
            scale_Cm1 = strength * length_Cm1 / jnp.maximum(size_Cm1, LEAST)
            gain_ko = self.gain[j]
            value = words[0] * gain_ko[0][None, None]
            for k in (1, 2):
                value = value + part_Cmnk[:, :, j, k, None] * words[k] * gain_ko[k][None, None]
            if c.memory_value_map:
                value = value + value @ self.value_map[j]
            value = value.astype(jnp.float32) * open_Cmn[:, :, j, None].astype(jnp.float32) * scale_Cm1
            value = jnp.where(said_Cm[..., None], value, 0.0) / c.scale
            factors[memory_name(MEMORY_MODULE, layer)] = {
                "A": k_Cmi.astype(features_NTF.dtype)[:, None],
                "B": value.astype(features_NTF.dtype)[:, None],
            }
        return factors

    def solve(self, factors: dict[str, dict[str, jax.Array]]) -> dict[str, dict[str, jax.Array]]:
        """Keys of contexts `[1, C, R, i]` as A rows; other entries as they are."""
        solved = dict(factors)
        for j, layer in enumerate(self.config.memory_layers):
            name = memory_name(MEMORY_MODULE, layer)
            k_CRi = factors[name]["A"][0].astype(jnp.float32)
            sink_C1i = k_CRi[:, :1]
            if self.config.memory_skip_first:
                k_CRi = k_CRi.at[:, :: self.config.memory_tokens].set(0.0)
            weight_i = jnp.exp(self.metric[j].astype(jnp.float32))[None, None]
            ridge = self.config.memory_ridge * jnp.exp(self.log_ridge[j].astype(jnp.float32))
            seen_CRi = self.quiet(j, k_CRi * weight_i)
            size_CR1 = jnp.float32(1.0)
            if not self.config.memory_noise:  # else a key that is mostly noise would count as much as the others
                size_CR1 = jnp.sqrt(jnp.sum(jnp.square(seen_CRi), axis=-1, keepdims=True) + LEAST**2)
            seen_CRi = seen_CRi / size_CR1
            gram_CRR = jnp.einsum("cri,csi->crs", seen_CRi, seen_CRi, precision="highest")
            gram_CRR = gram_CRR + ridge * jnp.eye(gram_CRR.shape[-1])[None]
            a_CRi = self.quiet(j, _solve(gram_CRR, seen_CRi / size_CR1), transposed=True) * weight_i
            narrow = factors[name]["A"].dtype
            if self.config.memory_size:
                moved_CRS = jnp.einsum("cri,is->crs", a_CRi.astype(narrow), self.seen[j])
                a_CRi = a_CRi + jnp.einsum("crs,si->cri", moved_CRS, self.asked[j]).astype(jnp.float32)
            if self.config.memory_skip_first:
                a_CRi = _without(a_CRi, sink_C1i)
            solved[name] = {"A": a_CRi.astype(narrow)[None], "B": factors[name]["B"]}
        return solved

    def quiet(self, j: int, x_CRi: jax.Array, *, transposed: bool = False) -> jax.Array:
        """x (I - in out^T / i) of memory layer j, or x times its transpose: less of the directions of noise."""
        if not self.config.memory_noise:
            return x_CRi
        into_is, out_is = (w[j].astype(jnp.float32) for w in (self.noise_in, self.noise_out))
        if transposed:
            into_is, out_is = out_is, into_is
        return x_CRi - jnp.einsum("crs,is->cri", jnp.einsum("cri,is->crs", x_CRi, into_is), out_is) / x_CRi.shape[-1]


def _without(x_Cmi: jax.Array, unit_C1i: jax.Array) -> jax.Array:
    """x less its part along a direction."""
    return x_Cmi - jnp.sum(x_Cmi * unit_C1i, axis=-1, keepdims=True) * unit_C1i


def noise_maps(moments_nii: jax.Array, width: int) -> jax.Array:
    """What `noise_in` and `noise_out` of a memory both are after what was measured, float32 `[n, i, width]`.

    Where a key is met again as x = k + e, the linear map that is nearest to its value on average weighs by the inverse
    of C = E[e e^T] (linear discriminants; the regression's ridge is C = ridge I). Keys times C^(-1/2) make it a ridge
    again. C here is its `width` largest directions and the mean of the others.

    Args:
      moments_nii: E[e e^T] of each memory layer.
    """

    def of_layer(moments_ii: jax.Array) -> jax.Array:
        power_i, direction_ii = jnp.linalg.eigh(moments_ii)
        least, power_s = jnp.mean(power_i[:-width]), power_i[-width:]
        damped_s = 1.0 - jnp.sqrt(jnp.minimum(least / jnp.maximum(power_s, LEAST**2), 1.0))
        return direction_ii[:, -width:] * jnp.sqrt(damped_s * len(moments_ii))[None]

    return jax.lax.map(of_layer, moments_nii)


def _solve(gram_CRR: jax.Array, keys_CRi: jax.Array) -> jax.Array:
    """gram^-1 keys by Cholesky; its inverse first, since a CPU multiplies far faster than it solves."""
    lower_CRR = jax.lax.linalg.cholesky(gram_CRR, symmetrize_input=False)
    eye_CRR = jnp.broadcast_to(jnp.eye(gram_CRR.shape[-1])[None], gram_CRR.shape)
    inverse_CRR = jax.lax.linalg.triangular_solve(lower_CRR, eye_CRR, left_side=True, lower=True)
    return jnp.einsum("crs,cri->csi", inverse_CRR, jnp.einsum("crs,csi->cri", inverse_CRR, keys_CRi))
