"""Reading chunks: through the encoder and the hypernetwork into an adapter, some at a time.

Letters: N chunks of a call, T chunk tokens.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from d2l.adapter import Factors, keep_loudest, loudness, place
from d2l.hypernet.config import MEMORY_MODULE, HypernetConfig
from d2l.hypernet.features import read_context
from d2l.hypernet.hypernet import abstract_hypernet
from d2l.target.config import TargetConfig
from d2l.target.decoder import abstract_decoder
from d2l.target.factors import memory_name
from d2l.target.generate import bucket

# Tokens that go through encoder and hypernetwork together: enough to keep a CPU busy, and what bounds peak memory.
TOKENS_PER_CALL = 2048


def make_reader(
    encoder: TargetConfig, config: HypernetConfig, *, stacked: bool, iterative: bool, loudest: bool = False
) -> Callable[..., Factors]:
    """The function `(encoder, hypernetwork, buffer, tokens, mask, context, slot) -> buffer` that reads N chunks.

    Args:
      stacked: the encoder's parameters are those of stacked layers.
      iterative: as in `DocToLora.internalize`.
      loudest: of more chunks than the buffer has places, the loudest stay; `slot` then says nothing.
    """
    encoder_def = abstract_decoder(encoder, stacked=stacked)[0]
    hyper_def = abstract_hypernet(config)[0]

    def read(encoder, hyper, buffer, tokens_NT, mask_NT, context_N, slot_N):
        features, sources = read_context(nnx.merge(encoder_def, encoder), config, tokens_NT)
        chunks = nnx.merge(hyper_def, hyper)(features, mask_NT, sources=sources, iterative=iterative)
        return keep_loudest(buffer, chunks, context_N) if loudest else place(buffer, chunks, context_N, slot_N)

    return read


def make_listener(
    encoder: TargetConfig, config: HypernetConfig, *, stacked: bool, iterative: bool
) -> Callable[..., jax.Array]:
    """The function `(encoder, hypernetwork, tokens, mask) -> float32 [N]`, by which chunks of a document stay.

    It is how relevant each of N chunks is, 0 to 1, where the hypernetwork has learned to tell (`relevance`), from the
    encoder alone; else how loud it is, which no memory is made for. Arguments as in `make_reader`.
    """
    config = dataclasses.replace(config, memory_layers=())
    encoder_def = abstract_decoder(encoder, stacked=stacked)[0]
    hyper_def = abstract_hypernet(config)[0]

    def listen(encoder, hyper, tokens_NT, mask_NT):
        features, sources = read_context(nnx.merge(encoder_def, encoder), config, tokens_NT)
        hypernet = nnx.merge(hyper_def, {name: a for name, a in hyper.items() if name != "memory"})
        if config.relevance:
            return jax.nn.sigmoid(hypernet.relevance(features, mask_NT[:, None]))
        return loudness(hypernet(features, mask_NT, sources=sources, iterative=iterative))

    return listen


def empty_factors(config: HypernetConfig, contexts: int, chunks: int, dtype: jnp.dtype) -> Factors:
    """Zeros `[L, C, R, d]` with room for `chunks` chunks of each context, and for the learned bias."""
    rows = (chunks + config.use_bias) * config.rank
    modules = zip(config.target_modules, config.d_in, config.d_out, strict=True)
    shapes = {name: (config.num_layers, rows, d_in, d_out) for name, d_in, d_out in modules}
    for layer in config.memory_layers:
        _, _, *widths = shapes[MEMORY_MODULE]
        shapes[memory_name(MEMORY_MODULE, layer)] = (1, chunks * config.memory_tokens, *widths)
    return {
        name: {"A": jnp.zeros((L, contexts, R, d_in), dtype), "B": jnp.zeros((L, contexts, R, d_out), dtype)}
        for name, (L, R, d_in, d_out) in shapes.items()
    }


def batch_chunks(chunks: list[list[list[int]]], pad_id: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Chunks of about the same length together: `(tokens [N, T], mask [N, T], context [N], slot [N])`.

    Rows added to fill a batch have context -1.
    """
    groups: dict[int, list[tuple[list[int], int, int]]] = {}
    for context, parts in enumerate(chunks):
        for slot, ids in enumerate(parts):
            groups.setdefault(bucket(len(ids), 32, parts=8), []).append((ids, context, slot))
    for width, rows in sorted(groups.items()):
        most = max(1, TOKENS_PER_CALL // width)
        for start in range(0, len(rows), most):
            part = rows[start : start + most]
            N = min(bucket(len(part)), most)
            tokens, mask = np.full((N, width), pad_id, np.int32), np.zeros((N, width), bool)
            mask[len(part) :, 0] = True  # attention over nothing is NaN, also in a row that is dropped
            context, slot = np.full(N, -1, np.int32), np.zeros(N, np.int32)
            for i, (ids, c, s) in enumerate(part):
                tokens[i, : len(ids)], mask[i, : len(ids)] = ids, True
                context[i], slot[i] = c, s
            yield tokens, mask, context, slot
