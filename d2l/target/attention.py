"""Causal attention of the target, and rotary positions.

Letters: B batch, T queries, S keys, N query heads, K key heads, G = N / K, H head_dim.
"""

import math

import jax
import jax.numpy as jnp

from d2l.target.config import TargetConfig
from d2l.target.product import float32_product

# A query block attends to the keys up to its own end only, so half of the T x T products are never formed; and no
# array larger than [B, N, block, T] exists.
QUERY_BLOCK = 256
MAX_UNROLLED_BLOCKS = 16


def rope_table(config: TargetConfig, positions_BT: jax.Array, *, local: bool = False) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of rotary positions, float32 `[B, T, H/2]` each.

    `local` asks for the sliding layers of a model that gives them a base of their own (Gemma 3).
    """
    half = config.head_dim // 2
    base = config.rope_local_base_freq if local else config.rope_theta
    inv_freq = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    scaling = None if local else config.rope_scaling
    if scaling is not None and scaling.kind == "linear":
        inv_freq = inv_freq / scaling.factor
    elif scaling is not None:  # llama3: stretch long wavelengths, keep short ones, blend between.
        original = scaling.original_max_position_embeddings
        turns = original * inv_freq / (2 * math.pi)
        blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        blend = jnp.clip(blend, 0.0, 1.0)
        inv_freq = (1 - blend) * inv_freq / scaling.factor + blend * inv_freq
    angles_BTh = positions_BT[..., None].astype(jnp.float32) * inv_freq[None, None, :]
    return jnp.cos(angles_BTh), jnp.sin(angles_BTh)


def apply_rope(x_BTNH: jax.Array, cos_BTh: jax.Array, sin_BTh: jax.Array) -> jax.Array:
    """Rotate the two halves of the head dimension against each other, in float32."""
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BTh[:, :, None, :], sin_BTh[:, :, None, :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)


def attend(
    q_BTNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKHS: jax.Array,
    *,
    q_index_BT: jax.Array,
    scale: float,
    softcap: float | None = None,
    window: jax.Array | None = None,
    q_segments_BT: jax.Array | None = None,
    k_segments_BS: jax.Array | None = None,
) -> jax.Array:
    """Grouped-query causal attention.

    Keys end in H and values in S, the axis that each is summed over: a CPU reads both in order, without copies.

    Args:
      q_index_BT: int32, the key slot that each query stands in; it sees slots 0..q_index.
      scale: multiplies the logits.
      softcap: logits become softcap * tanh(logits / softcap).
      window: int32 scalar; a query sees only the last `window` slots, its own included.
      q_segments_BT, k_segments_BS: int32; a query sees only slots of its own segment.

    Returns:
      `[B, T, N, H]` in the dtype of q; softmax in float32.
    """
    T, S = q_BTNH.shape[1], k_BKSH.shape[2]

    def block(start: int, stop: int, keys: int) -> jax.Array:
        rows = slice(start, stop)
        return _attend_block(
            q_BTNH[:, rows],
            k_BKSH[:, :, :keys],
            v_BKHS[..., :keys],
            q_index_BT[:, rows],
            scale,
            softcap,
            window,
            None if q_segments_BT is None else q_segments_BT[:, rows],
            None if k_segments_BS is None else k_segments_BS[:, :keys],
        )

    if T <= QUERY_BLOCK:
        return block(0, T, S)
    # Without a cache slot t holds token t, so a block of queries needs no key past its own end.
    size = max(QUERY_BLOCK, math.ceil(T / MAX_UNROLLED_BLOCKS))
    starts = range(0, T, size)
    return jnp.concatenate([block(s, min(s + size, T), min(s + size, T) if S == T else S) for s in starts], axis=1)


def _attend_block(q_BTNH, k_BKSH, v_BKHS, q_index_BT, scale, softcap, window, q_segments_BT, k_segments_BS):
    B, T, N, H = q_BTNH.shape
    K, S = k_BKSH.shape[1:3]
    G = N // K
    batch = ((0, 1), (0, 1))
    # Queries first, and both sums over the last axes: einsum would put the cache first and transpose the results.
    q_BKMH = q_BTNH.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)

    def dot(q, k, dtype):
        return jax.lax.dot_general(q, k, (((3,), (3,)), batch), preferred_element_type=dtype)

    logits_BKMS = float32_product(dot, q_BKMH, k_BKSH)
    logits_BKGTS = logits_BKMS.reshape(B, K, G, T, S) * scale
    if softcap is not None:
        logits_BKGTS = softcap * jnp.tanh(logits_BKGTS / softcap)
    slots_11S = jnp.arange(S)[None, None, :]
    seen_BTS = slots_11S <= q_index_BT[:, :, None]
    if window is not None:
        seen_BTS &= slots_11S > q_index_BT[:, :, None] - window
    if q_segments_BT is not None:
        seen_BTS &= q_segments_BT[:, :, None] == k_segments_BS[:, None, :]
    logits_BKGTS = jnp.where(seen_BTS[:, None, None], logits_BKGTS, jnp.finfo(jnp.float32).min)
    probs_BKMS = jax.nn.softmax(logits_BKGTS, axis=-1).astype(v_BKHS.dtype).reshape(B, K, G * T, S)
    out_BKMH = jax.lax.dot_general(probs_BKMS, v_BKHS, (((3,), (3,)), batch))
    return out_BKMH.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
