"""Doc-to-LoRA itself: the documents become an adapter in one forward pass each."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from d2l.adapter import Adapter
from d2l.experiments.baselines.face import Memory, Method, NotRun, Prompt
from d2l.model import DocToLora


def d2l(
    model: DocToLora,
    max_new_tokens: int,
    *,
    iterative: bool = False,
    max_chunk_len: int | None = None,
    chunk_overlap: int | None = None,
    keep_chunks: int | None = None,
    chunk_at: str | None = None,
    scale: float = 1.0,
) -> Method:
    """Documents internalized and absent.

    Args:
      iterative, max_chunk_len, chunk_overlap, keep_chunks, chunk_at: as in `DocToLora.internalize`.
      scale: strength of the adapter.
    """
    cut = {
        "max_chunk_len": max_chunk_len,
        "chunk_overlap": chunk_overlap,
        "keep_chunks": keep_chunks,
        "chunk_at": chunk_at,
    }
    if model.hypernet is None:
        raise NotRun("it needs a hypernetwork: name one in config.hypernet.")

    def remember(documents: Sequence[str], queries: Sequence[str]) -> Memory:
        return Memory(lambda query: Prompt(model.tokenizer.user_turn(query)), adapter=read(documents))

    def read(documents: Sequence[str]) -> Adapter:
        adapter = model.internalize(documents, iterative=iterative, **cut)
        hyper = model.hypernet.config
        return united(adapter, hyper.rank if hyper.use_bias else 0).scaled(scale)

    return Method(model, max_new_tokens, remember, adapts=True)


def united(adapter: Adapter, bias_rank: int) -> Adapter:
    """All contexts as one: their chunks along the rank axis, then the learned bias, once (SPEC 4); so their memories.

    Args:
      bias_rank: the last rows of every context that hold the learned bias.
    """
    if adapter.num_contexts == 1:
        return adapter
    ranks = [int(rank) for rank in adapter.ranks]

    def unite(a_LCRd: jax.Array) -> jax.Array:
        rows = [a_LCRd[:, c, : rank - bias_rank] for c, rank in enumerate(ranks)]
        return jnp.concatenate([*rows, a_LCRd[:, 0, ranks[0] - bias_rank : ranks[0]]], axis=1)[:, None]

    factors = {}
    for name, ab in adapter.factors.items():
        factors[name] = jax.tree.map(_end_to_end if "@" in name else unite, ab)
    total = sum(ranks) - bias_rank * (len(ranks) - 1)
    return Adapter(factors, jnp.array([total], jnp.int32), adapter.scale, adapter.target_name, adapter.target_hash)


def _end_to_end(a_1CRd: jax.Array) -> jax.Array:
    return a_1CRd.reshape(a_1CRd.shape[0], 1, -1, a_1CRd.shape[3])
