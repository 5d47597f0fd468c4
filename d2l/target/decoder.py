"""The target language model: one decoder for Llama, Mistral, Qwen 3, Gemma 2 and Gemma 3 text.

Letters: B batch, T tokens, S cache slots, L layers, D hidden, F MLP width, N query heads, K key heads, H head_dim,
V vocabulary, C contexts (adapters), R rank.

Parameter names and the [out, in] layout are Hugging Face's. Layers come in one of two forms: stacked on a leading
layer axis and scanned (training, sharding, short compiles), or one by one (`unstack_params`), which on a CPU decodes
about 2.5 times faster, since a scan copies each layer's weights out of the stack.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from d2l import mesh
from d2l.target.attention import apply_rope, attend, rope_table
from d2l.target.config import TargetConfig
from d2l.target.factors import low_rank, split_memories, times, unstack
from d2l.target.product import float32_product
from d2l.target.quantize import widen
from d2l.target.splash import splash_attention, usable

Params = dict[str, Any]
ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_MODULES = ("gate_proj", "up_proj", "down_proj")
# Layers that stand one by one hold these as one weight: fewer, larger products take a tenth off a decode step.
JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
MEMORY = "memory"  # beside an adapter's modules: more factors of those that it names
INPUTS = "inputs"  # beside an adapter's modules: a dict that takes the inputs of those it names
# What the backward pass of a block keeps instead of recomputing it: everything, nothing, or products with weights.
REMAT = {"none": None, "full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def linear(module: nnx.Module, name: str, x_BTi: jax.Array, adapter: dict[str, Any]) -> jax.Array:
    """y = W x with the weight `name` of `module`, plus what the adapter has for it (see `low_rank`)."""
    w_oi = getattr(module, name)[...]
    y_BTo = times(x_BTi, w_oi)
    if name in adapter.get(INPUTS, ()):
        adapter[INPUTS][name] = x_BTi
    for ab in (adapter.get(name), adapter.get(MEMORY, {}).get(name)):
        if ab is not None:
            y_BTo = y_BTo + low_rank(x_BTi, ab, mesh.split_of(w_oi, 0))
    return y_BTo


def linears(module: nnx.Module, joined: str, x_BTi: jax.Array, adapter: dict[str, Any]) -> list[jax.Array]:
    """The products of `module` with one input, `JOINED[joined]`: with one weight, or with one of each name."""
    names = JOINED[joined]
    if not hasattr(module, joined):
        return [linear(module, name, x_BTi, adapter) for name in names]
    y_BTo, parts, start = times(x_BTi, getattr(module, joined)[...]), [], 0
    for name in names:
        end = start + module.config.module_sizes[name][1]
        part_BTo, start = y_BTo[..., start:end], end
        parts.append(part_BTo + low_rank(x_BTi, adapter[name]) if name in adapter else part_BTo)
    return parts


def rms_norm(x: jax.Array, weight: jax.Array, config: TargetConfig) -> jax.Array:
    """Root mean square norm over the last axis, in float32; Gemma multiplies by (1 + weight), in float32 too."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + config.rms_norm_eps)
    weight = weight.reshape((1,) * (x.ndim - 1) + (-1,))
    if config.norm_offset:
        return (x32 * (config.norm_offset + weight.astype(jnp.float32))).astype(x.dtype)
    return x32.astype(x.dtype) * weight


def write_cache(cache: jax.Array, new: jax.Array, start_B: jax.Array, *, axis: int) -> jax.Array:
    """`new` in place of the slots from `start_B` on, a start of its own for each row; `axis` is that of a row's slots.

    A scatter on an axis that is not the first would copy the whole cache on a CPU.
    """

    def write(row, new, start):
        return jax.lax.dynamic_update_slice_in_dim(row, new, start, axis)

    return jax.vmap(write)(cache, new, start_B)


def norm_param(config: TargetConfig, shape: tuple[int, ...]) -> nnx.Param:
    """Weight of an `rms_norm` that starts as the identity."""
    return nnx.Param(jnp.full(shape, 1.0 - config.norm_offset, jnp.float32))


def add_weights(module: nnx.Module, names: Sequence[str], stack: tuple[int, ...], init: Callable) -> None:
    """The weights of `names`, each `[*stack, out, in]`; of a layer that stands alone (`stack` is ()) joined ones."""
    sizes = module.config.module_sizes
    joined = {} if stack else {key: parts for key, parts in JOINED.items() if set(parts) <= set(names)}
    for key, parts in (joined | {name: (name,) for name in names if name not in sum(joined.values(), ())}).items():
        setattr(module, key, nnx.Param(init((*stack, sum(sizes[name][1] for name in parts), sizes[parts[0]][0]))))


class Attention(nnx.Module):
    """Grouped-query self-attention, with or without a cache."""

    def __init__(self, config: TargetConfig, stack: tuple[int, ...], init: Callable):
        self.config = config
        add_weights(self, ATTENTION_MODULES, stack, init)
        if config.qk_norm:
            self.q_norm = norm_param(config, (*stack, config.head_dim))
            self.k_norm = norm_param(config, (*stack, config.head_dim))

    def __call__(self, x_BTD, rope, cache, adapter, mask):
        c = self.config
        B, T, _ = x_BTD.shape
        q_BTNH, k_BTKH, v_BTKH = (
            y_BTo.reshape(B, T, -1, c.head_dim) for y_BTo in linears(self, "qkv_proj", x_BTD, adapter)
        )
        if c.qk_norm:
            q_BTNH, k_BTKH = rms_norm(q_BTNH, self.q_norm[...], c), rms_norm(k_BTKH, self.k_norm[...], c)
        q_BTNH, k_BTKH = apply_rope(q_BTNH, *rope), apply_rope(k_BTKH, *rope)
        k_BKSH, v_BKHS = k_BTKH.transpose(0, 2, 1, 3), v_BTKH.transpose(0, 2, 3, 1)
        if cache is not None and mask["fresh"]:
            cache = {"k": cache["k"].at[:, :, :T].set(k_BKSH), "v": cache["v"].at[..., :T].set(v_BKHS)}
        elif cache is not None:
            start_B = mask["q_index_BT"][:, 0]
            k_BKSH = write_cache(cache["k"], k_BKSH, start_B, axis=1)
            v_BKHS = write_cache(cache["v"], v_BKHS, start_B, axis=2)
            # Without the barrier XLA writes each cache twice, once in place and once into a copy that it reads.
            k_BKSH, v_BKHS = jax.lax.optimization_barrier((k_BKSH, v_BKHS))
            cache = {"k": k_BKSH, "v": v_BKHS}
        options = {"scale": c.query_pre_attn_scalar**-0.5, "softcap": c.attn_logit_softcapping}
        if cache is None and usable(T, c.head_dim):
            where = {"segments_BT": mask.get("q_segments_BT"), "window": c.sliding_window, "sliding": mask["sliding"]}
            o_BTNH = splash_attention(q_BTNH, k_BKSH, v_BKHS, **where, **options)
        else:
            mask = {name: value for name, value in mask.items() if name not in ("fresh", "sliding")}
            o_BTNH = attend(q_BTNH, k_BKSH, v_BKHS, **mask, **options)
        return linear(self, "o_proj", o_BTNH.reshape(B, T, -1), adapter), cache


class MLP(nnx.Module):
    """Gated MLP."""

    def __init__(self, config: TargetConfig, stack: tuple[int, ...], init: Callable):
        self.config = config
        self.act = {"silu": jax.nn.silu, "gelu_pytorch_tanh": jax.nn.gelu}[config.hidden_act]
        add_weights(self, MLP_MODULES, stack, init)

    def __call__(self, x_BTD, adapter):
        gate_BTF, up_BTF = linears(self, "gate_up_proj", x_BTD, adapter)
        return linear(self, "down_proj", self.act(gate_BTF) * up_BTF, adapter)


class Block(nnx.Module):
    """One decoder layer; `stack` is (L,) for parameters of all layers at once, () for one layer's own."""

    def __init__(self, config: TargetConfig, stack: tuple[int, ...], init: Callable):
        width = (*stack, config.hidden_size)
        self.config = config
        self.input_layernorm = norm_param(config, width)
        self.post_attention_layernorm = norm_param(config, width)
        if config.sandwich_norms:
            self.pre_feedforward_layernorm = norm_param(config, width)
            self.post_feedforward_layernorm = norm_param(config, width)
        self.self_attn = Attention(config, stack, init)
        self.mlp = MLP(config, stack, init)

    def __call__(self, x_BTD, rope, cache, adapter, mask):
        def norm(x, weight):
            return rms_norm(x, weight[...], self.config)

        attn_BTD, cache = self.self_attn(norm(x_BTD, self.input_layernorm), rope, cache, adapter, mask)
        if self.config.sandwich_norms:
            x_BTD = x_BTD + norm(attn_BTD, self.post_attention_layernorm)
            mlp_BTD = self.mlp(norm(x_BTD, self.pre_feedforward_layernorm), adapter)
            return x_BTD + norm(mlp_BTD, self.post_feedforward_layernorm), cache
        x_BTD = x_BTD + attn_BTD
        return x_BTD + self.mlp(norm(x_BTD, self.post_attention_layernorm), adapter), cache


class Decoder(nnx.Module):
    """Decoder-only transformer.

    Args:
      config: shape and options.
      rngs: source of a random initialisation (weights N(0, 0.02^2), norms the identity); under `nnx.eval_shape`
        nothing is allocated.
      stacked: layers on one leading axis (scanned) or one by one.
    """

    def __init__(self, config: TargetConfig, rngs: nnx.Rngs, *, stacked: bool = True):
        def init(shape):
            return 0.02 * jax.random.normal(rngs.params(), shape)

        self.config, self.stacked = config, stacked
        self.embed_tokens = nnx.Param(init((config.vocab_size, config.hidden_size)))
        if stacked:
            self.layers = Block(config, (config.num_hidden_layers,), init)
        else:
            self.layers = nnx.List([Block(config, (), init) for _ in range(config.num_hidden_layers)])
        self.norm = norm_param(config, (config.hidden_size,))
        if not config.tie_word_embeddings:
            self.lm_head = nnx.Param(init((config.vocab_size, config.hidden_size)))

    def embed(self, tokens_BT: jax.Array) -> jax.Array:
        """Token ids int32 `[B, T]` to embeddings `[B, T, D]` in the dtype of the weights."""
        x_BTD = mesh.take(self.embed_tokens[...], tokens_BT)
        if self.config.embed_scale:
            x_BTD = x_BTD * jnp.asarray(self.config.hidden_size**0.5, x_BTD.dtype)
        return x_BTD

    def unembed(self, x: jax.Array) -> jax.Array:
        """Hidden states `[..., D]` after the final norm to float32 logits `[..., V]`."""
        head_VD = (self.embed_tokens if self.config.tie_word_embeddings else self.lm_head)[...]
        x_1ND = x.reshape(1, -1, x.shape[-1])
        logits = float32_product(times, x_1ND, head_VD).reshape(*x.shape[:-1], -1)
        cap = self.config.final_logit_softcapping
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def word_directions(self, tokens_BT: jax.Array) -> jax.Array:
        """Unit vectors `[B, T, D]` of the residual stream along which the head tells each token from the mean."""
        head_VD = (self.embed_tokens if self.config.tie_word_embeddings else self.lm_head)[...]
        weight = self.norm[...].astype(jnp.float32) + self.config.norm_offset
        mean_D = jnp.mean(head_VD, axis=0, dtype=jnp.float32)
        x_BTD = (mesh.take(head_VD, tokens_BT).astype(jnp.float32) - mean_D[None, None]) * weight[None, None]
        return (x_BTD / jnp.linalg.norm(x_BTD, axis=-1, keepdims=True)).astype(head_VD.dtype)

    def final_norm(self, x_BTD: jax.Array) -> jax.Array:
        """The norm between the last block and the head."""
        return rms_norm(x_BTD, self.norm[...], self.config)

    def run_blocks(
        self,
        x_BTD: jax.Array,
        *,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        adapter: Any = None,
        gate_BTR: jax.Array | None = None,
        cache: Any = None,
        fresh: bool = False,
        num_layers: int | None = None,
        collect: bool | Sequence[str] = False,
        remat: str = "none",
    ) -> tuple[jax.Array, Any, jax.Array | dict[str, jax.Array] | None]:
        """Run the first `num_layers` blocks (default: all), without the final norm.

        Args:
          positions_BT: int32 RoPE positions, default 0..T-1; with a cache also the slots that are written and the
            causal order: consecutive in a row, and within the slots.
          segments_BT: int32, no attention across segments (packed rows, padding); not with a cache.
          adapter: `{module: {"A": [L, B, R, d_in], "B": [L, B, R, d_out]}}`, a row of its own per batch row; with
            unstacked layers a sequence of L such dicts without L (`adapter_layers`). Factors of single layers
            (`memory_name`) may have a gate of their own, `"gate": [1, B, T, R]`.
          gate_BTR: which of the adapter's R rows each token uses, 0 or 1; default all.
          cache: `{"k": [L, B, K, S, H], "v": [L, B, K, H, S]}`; with unstacked layers a sequence of L without L.
          fresh: nothing is in the cache yet and row positions are 0..T-1: attention is over these T tokens alone.
          collect: also return the input of every block that ran; or of the modules named, where `block` is the block's
            own (of `down_proj` and `o_proj`).
          remat: what the backward pass recomputes, a name of `REMAT`.

        Returns:
          `(x_BTD, cache, inputs)`: the inputs are `[L, B, T, D]`, `{name: [L, B, T, d]}` of names, or None.
        """
        c = self.config
        B, T, _ = x_BTD.shape
        count = c.num_hidden_layers if num_layers is None else num_layers
        index_BT = jnp.broadcast_to(jnp.arange(T)[None, :], (B, T))
        positions_BT = index_BT if positions_BT is None else positions_BT
        mask = {"q_index_BT": index_BT if cache is None else positions_BT, "fresh": fresh}
        if segments_BT is not None:
            mask |= {"q_segments_BT": segments_BT, "k_segments_BS": segments_BT}
        sliding_L = jnp.array([kind == "sliding_attention" for kind in c.layer_types])[:count]
        any_sliding = "sliding_attention" in c.layer_types[:count]
        rope = rope_table(c, positions_BT)
        rope_local = rope_table(c, positions_BT, local=True) if c.rope_local_base_freq else rope

        def body(x_BTD, layer):
            block, sliding, ab, kv = layer
            ropes, masks = rope, mask | {"sliding": sliding}
            if c.rope_local_base_freq:
                ropes = jax.tree.map(lambda near, far: jnp.where(sliding, near, far), rope_local, rope)
            if any_sliding:
                masks |= {"window": jnp.where(sliding, c.sliding_window, jnp.iinfo(jnp.int32).max)}
            ab = ab or {}
            if gate_BTR is not None:
                ab = {name: f if name == MEMORY else f | {"gate": gate_BTR} for name, f in ab.items()}
            if isinstance(collect, bool):
                out_BTD, kv = block(x_BTD, ropes, kv, ab, masks)
                return out_BTD, (kv, x_BTD if collect else None)
            inputs = dict.fromkeys(collect) | {"block": x_BTD}
            out_BTD, kv = block(x_BTD, ropes, kv, ab | {INPUTS: inputs}, masks)
            return out_BTD, (kv, inputs)

        if not self.stacked:
            caches, inputs = [], []
            for i in range(count):
                layer = (self.layers[i], sliding_L[i], adapter and adapter[i], cache and cache[i])
                x_BTD, (kv, seen) = body(x_BTD, layer)
                caches.append(kv)
                inputs.append(seen)
            return x_BTD, cache and caches, jax.tree.map(lambda *a: jnp.stack(a), *inputs) if collect else None

        graphdef, params = nnx.split(self.layers)
        adapter, memories = split_memories(adapter) if adapter else (adapter, {})

        def run_part(x_BTD, start, stop):
            """Blocks `start` to `stop` - 1, of which the first may have a memory."""
            part = jax.tree.map(lambda a: a[start:stop], (nnx.to_pure_dict(params), adapter, cache))

            def scan_body(x_BTD, layer):
                params, sliding, ab, kv = layer
                if start in memories:
                    ab = (ab or {}) | {MEMORY: memories[start]}
                return body(x_BTD, (nnx.merge(graphdef, widen(mesh.gather(params))), sliding, ab, kv))

            if remat != "none":
                scan_body = jax.checkpoint(scan_body, prevent_cse=False, policy=REMAT[remat])
            return jax.lax.scan(scan_body, x_BTD, (part[0], sliding_L[start:stop], *part[1:]))

        # A layer with a memory stands alone, so that no other layer has room for one.
        alone = [layer for layer in memories if layer < count]
        ends = sorted({0, count, *alone, *(layer + 1 for layer in alone)})
        seen = []
        for start, stop in zip(ends[:-1], ends[1:], strict=True):
            x_BTD, out = run_part(x_BTD, start, stop)
            seen.append(out)
        cache, inputs = seen[0] if len(seen) == 1 else jax.tree.map(lambda *a: jnp.concatenate(a), *seen)
        return x_BTD, cache, inputs

    def __call__(self, tokens_BT: jax.Array, **kwargs) -> jax.Array:
        """Token ids to logits, float32 `[B, T, V]`; keywords as in `run_blocks`, which has the cache."""
        x_BTD, _, _ = self.run_blocks(self.embed(tokens_BT), **kwargs)
        return self.unembed(self.final_norm(x_BTD))


def abstract_decoder(config: TargetConfig, *, stacked: bool = True) -> tuple[nnx.GraphDef, Params]:
    """Graph definition and shapes of a decoder, nothing allocated.

    `nnx.merge(graphdef, params)` inside a jitted function makes the decoder of a tree of arrays of those shapes.
    """
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0), stacked=stacked)))
    return graphdef, nnx.to_pure_dict(state)


def unstack_params(params: Params, count: int) -> Params:
    """Parameters of a stacked decoder as those of an unstacked one, which come back as they are."""
    if 0 in params["layers"]:
        return params

    def one(layer):
        return layer | {"self_attn": _join(layer["self_attn"]), "mlp": _join(layer["mlp"])}

    return params | {"layers": {i: one(layer) for i, layer in enumerate(unstack(params["layers"], count))}}


def stack_params(params: Params, config: TargetConfig) -> Params:
    """Parameters of an unstacked decoder as those of a stacked one."""

    def one(layer):
        return layer | {part: _part(layer[part], config) for part in ("self_attn", "mlp")}

    layers = [one(params["layers"][i]) for i in range(config.num_hidden_layers)]
    return params | {"layers": jax.tree.map(lambda *a: jnp.stack(a), *layers)}


def _join(weights: Params) -> Params:
    """Weights by name as a layer that stands alone has them: some as one."""
    joined = {key: names for key, names in JOINED.items() if set(names) <= set(weights)}
    rest = {name: w for name, w in weights.items() if name not in sum(joined.values(), ())}
    return rest | {key: jnp.concatenate([weights[name] for name in names]) for key, names in joined.items()}


def _part(weights: Params, config: TargetConfig) -> Params:
    """The inverse of `_join`."""
    out = {name: w for name, w in weights.items() if name not in JOINED}
    for key in set(weights) & set(JOINED):
        ends = np.cumsum([config.module_sizes[name][1] for name in JOINED[key]])
        out |= zip(JOINED[key], jnp.split(weights[key], ends[:-1]), strict=True)
    return out


def init_cache(config: TargetConfig, batch: int, slots: int, dtype: jnp.dtype, *, stacked: bool = True) -> Any:
    """Empty KV cache of `slots` tokens per row; bytes = 2 L B S K H itemsize."""
    rows, L = (batch, config.num_key_value_heads), config.num_hidden_layers
    shapes = {"k": (*rows, slots, config.head_dim), "v": (*rows, config.head_dim, slots)}
    if stacked:
        return {name: jnp.zeros((L, *shape), dtype) for name, shape in shapes.items()}
    return [{name: jnp.zeros(shape, dtype) for name, shape in shapes.items()} for _ in range(L)]
