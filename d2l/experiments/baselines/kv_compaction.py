"""KV compaction: the cache of the document without the entries that the target attends to least (KVzip, 2025).

The target is made to repeat the document; an entry's score is the most attention that it gets meanwhile. Every head
keeps its own best entries, equally many each (KVzip shares the budget out among heads), and RoPE positions are closed
up, so that what is kept stands at 0..n-1.

Letters: T tokens of a piece, S cache slots, L layers, N query heads, K key heads, G = N / K, H head_dim, n slots kept.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from d2l.errors import UserError
from d2l.experiments.baselines.face import Memory, Method, NotRun, Prompt
from d2l.experiments.baselines.in_context import cut_middle, joined, room
from d2l.experiments.baselines.kv_cache import KVCache
from d2l.hypernet.reader import empty_factors
from d2l.model import DocToLora
from d2l.target.attention import apply_rope, rope_table
from d2l.target.config import TargetConfig
from d2l.target.decoder import abstract_decoder, linears, rms_norm
from d2l.target.generate import bucket
from d2l.target.prefix import PrefixGenerator

REPEAT = "Repeat the previous context exactly."
PIECE = 512  # tokens that are repeated at a time: bounds the attention matrix [N, T, S]
WINDOW_SHARE = 4  # at most this part of the window

Layers = list[dict[str, jax.Array]]


def make_scorer(config: TargetConfig) -> Callable[..., jax.Array]:
    """The jitted `(params, cache, tokens [1, T], positions [1, T], real [T]) -> most attention of a slot [L, K, S]`."""
    graphdef = abstract_decoder(config, stacked=False)[0]
    K, H = config.num_key_value_heads, config.head_dim

    def scores(params, cache, tokens_1T, positions_1T, real_T):
        decoder = nnx.merge(graphdef, params)
        _, cache, inputs_L1TD = decoder.run_blocks(
            decoder.embed(tokens_1T), positions_BT=positions_1T, cache=cache, collect=True
        )

        def of_layer(i):
            block, kind = decoder.layers[i], config.layer_types[i]
            x_1TD = rms_norm(inputs_L1TD[i], block.input_layernorm[...], config)
            q_1TNH = linears(block.self_attn, "qkv_proj", x_1TD, {})[0].reshape(1, x_1TD.shape[1], -1, H)
            if config.qk_norm:
                q_1TNH = rms_norm(q_1TNH, block.self_attn.q_norm[...], config)
            q_1TNH = apply_rope(q_1TNH, *_rope(config, kind, positions_1T))
            q_TKGH = q_1TNH[0].reshape(q_1TNH.shape[1], K, -1, H)
            logits_KGTS = jnp.einsum("tkgh,ksh->kgts", q_TKGH, cache[i]["k"][0], preferred_element_type=jnp.float32)
            logits_KGTS = logits_KGTS * config.query_pre_attn_scalar**-0.5
            if (cap := config.attn_logit_softcapping) is not None:
                logits_KGTS = cap * jnp.tanh(logits_KGTS / cap)
            slots_1S, here_T1 = jnp.arange(logits_KGTS.shape[-1])[None, :], positions_1T[0][:, None]
            seen_TS = slots_1S <= here_T1
            if kind == "sliding_attention":
                seen_TS &= slots_1S > here_T1 - config.sliding_window
            probs_KGTS = jax.nn.softmax(jnp.where(seen_TS[None, None], logits_KGTS, -jnp.inf), axis=-1)
            return jnp.max(jnp.where(real_T[None, None, :, None], probs_KGTS, 0.0), axis=(1, 2))

        return jnp.stack([of_layer(i) for i in range(config.num_hidden_layers)])

    return jax.jit(scores)


def make_compactor(config: TargetConfig) -> Callable[..., Layers]:
    """The jitted `(cache, kept int32 [L, K, n]) -> cache of n slots`, with positions closed up."""

    def compact(cache, kept_LKn):
        layers = []
        for layer, kept_Kn, kind in zip(cache, kept_LKn, config.layer_types, strict=True):
            k_KnH = jnp.take_along_axis(layer["k"][0], kept_Kn[..., None], axis=1)
            v_KHn = jnp.take_along_axis(layer["v"][0], kept_Kn[:, None, :], axis=2)
            moved_Kn = jnp.arange(kept_Kn.shape[1])[None, :] - kept_Kn
            k_Kn1H = apply_rope(k_KnH[:, :, None], *_rope(config, kind, moved_Kn))
            layers.append({"k": k_Kn1H[None, :, :, 0], "v": v_KHn[None]})
        return layers

    return jax.jit(compact)


def _rope(config: TargetConfig, kind: str, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    local = kind == "sliding_attention" and config.rope_local_base_freq is not None
    return rope_table(config, positions, local=local)


def adapter_nbytes(model: DocToLora, tokens: int) -> int:
    """Bytes of the adapter that D2L makes of a document."""
    hyper = model.hypernet.config
    chunking = model.chunking()
    kept = chunking.kept(len(chunking.split(range(tokens))))
    factors = jax.eval_shape(lambda: empty_factors(hyper, 1, kept, model.generator.dtype))
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(factors))


def kv_compaction(model: DocToLora, max_new_tokens: int, *, keep: int | None = None) -> Method:
    """The document's KV cache, compacted.

    Args:
      keep: tokens whose entries stay, those of the chat turn included; None is as many as have the bytes of D2L's
        adapter for the same document.
    """
    if keep is None and model.hypernet is None:
        raise NotRun("it keeps as many bytes as D2L's adapter: give a hypernetwork, or `keep` tokens.")
    if keep is not None and keep < 1:
        raise UserError(f"keep is {keep}: give 1 token or more.")
    config, tokenizer = model.target.config, model.tokenizer
    reader = PrefixGenerator(config, model.generator.params)
    scorer, compactor = make_scorer(config), make_compactor(config)
    prefix, suffix = tokenizer.turn_wrapper
    blank = tokenizer.encode("\n\n")
    piece_tokens = min(PIECE, config.max_position_embeddings // WINDOW_SHARE)

    def remember(documents: Sequence[str], queries: Sequence[str]) -> Memory:
        whole = tokenizer.encode(joined(documents))
        # Beside the document the window holds a piece of it again.
        document, cut = cut_middle(whole, room(model, REPEAT, max_new_tokens + piece_tokens))
        length = len(prefix) + len(document)
        wanted = keep
        if wanted is None:
            wanted = adapter_nbytes(model, len(whole)) // model.generator.cache_nbytes(1)
        n = min(length, max(wanted, len(prefix) + 1))
        cache = reader.read([[*prefix, *document]]).cache
        score_LKS = _score(reader.params, cache, document, length)
        score_LKS[..., : len(prefix)] = np.inf  # the chat turn, and the attention sink in it
        best_LKn = np.argpartition(-score_LKS[..., :length], n - 1, axis=-1)[..., :n]
        kept = KVCache(compactor(cache, np.sort(best_LKn, axis=-1).astype(np.int32)), n)
        return Memory(lambda query: Prompt([*blank, *tokenizer.encode(query), *suffix], cut), cache=kept)

    def _score(params: Any, cache: Layers, document: list[int], length: int) -> np.ndarray:
        """Float32 `[L, K, S]`, over all pieces of the repeated document."""
        ask = [*blank, *tokenizer.encode(REPEAT), *suffix]
        score = functools.partial(scorer, params)
        pieces = [document[start : start + piece_tokens] for start in range(0, len(document), piece_tokens)]
        roomy = KVCache(cache, length).with_room(bucket(len(ask) + len(pieces[0]), 32))
        best = None
        for piece in pieces:
            width = bucket(len(ask) + len(piece), 32)
            tokens = np.zeros((1, width), np.int32)
            tokens[0, : len(ask) + len(piece)] = [*ask, *piece]
            real_T = (np.arange(width) >= len(ask) - 1) & (np.arange(width) < len(ask) + len(piece))
            found = np.asarray(score(roomy, tokens, np.arange(length, length + width, dtype=np.int32)[None], real_T))
            best = np.array(found) if best is None else np.maximum(best, found)
        return best

    return Method(model, max_new_tokens, remember)
