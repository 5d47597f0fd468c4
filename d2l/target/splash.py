"""Causal attention of whole rows by JAX's splash kernel for TPUs: logits exist a block at a time, in both passes.

`d2l.target.attention.attend` computes the same and is what the kernel is checked against.

Letters: B batch, T tokens, N query heads, K key heads, H head_dim.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from d2l import mesh

LANES = 128  # the kernel's blocks and the head width are multiples of this
LARGEST_BLOCK = 512


def usable(T: int, head_dim: int) -> bool:
    """Whether the kernel runs on the devices in use and takes rows of T tokens."""
    return mesh.platform() == "tpu" and T % LANES == 0 and head_dim % LANES == 0


def splash_attention(
    q_BTNH: jax.Array,
    k_BKTH: jax.Array,
    v_BKHT: jax.Array,
    *,
    segments_BT: jax.Array | None,
    scale: float,
    softcap: float | None,
    window: int | None,
    sliding: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """As `attend` where a row's token t stands in slot t; each chip computes its own heads.

    Args:
      window: tokens that a query sees where `sliding`, a bool scalar, is true; None: no layer slides.
      interpret: run the kernel's program on any device.
    """
    # Imported where it is used: Pallas for TPUs takes long to import.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    T = q_BTNH.shape[1]
    block = next(size for size in (LARGEST_BLOCK, 256, LANES) if T % size == 0)
    sizes = kernel.BlockSizes(
        **dict.fromkeys(("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), block)
    )
    if segments_BT is None:
        segments_BT = jnp.zeros((q_BTNH.shape[0], T), jnp.int32)

    def attend(q_BTNH, k_BKTH, v_BKHT, segments_BT, sliding):
        def rows(mask):
            run = kernel.make_splash_mha(
                masks.MultiHeadMask([mask] * q_BTNH.shape[2]),
                block_sizes=sizes,
                head_shards=1,
                q_seq_shards=1,
                attn_logits_soft_cap=softcap,
                interpret=interpret,
            )
            return lambda *args: jax.vmap(run)(*args)

        q_BNTH = (q_BTNH.astype(jnp.float32) * scale).astype(q_BTNH.dtype).swapaxes(1, 2)
        args = (q_BNTH, k_BKTH, v_BKHT.swapaxes(2, 3), kernel.SegmentIds(segments_BT, segments_BT))
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # the kernel's own
            everything = rows(masks.CausalMask((T, T)))
            if window is None:
                out_BNTH = everything(*args)
            else:
                near = rows(masks.LocalMask((T, T), (window - 1, 0), 0))
                out_BNTH = jax.lax.cond(sliding, near, everything, *args)
        return out_BNTH.swapaxes(1, 2)

    args = (q_BTNH, k_BKTH, v_BKHT, segments_BT, sliding)
    if not mesh.has_mesh():
        return attend(*args)
    by_head = P(None, None, mesh.MODEL, None)
    specs = (by_head, P(None, mesh.MODEL), P(None, mesh.MODEL), P(), P())
    return jax.shard_map(attend, in_specs=specs, out_specs=by_head, check_vma=False)(*args)
