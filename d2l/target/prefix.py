"""Many prompts that begin with one of a few texts: each text is read once, and its keys and values serve them all.

Letters: P prefixes, B rows, T tokens, R response tokens, V vocabulary, k tokens kept.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from d2l.target.config import TargetConfig
from d2l.target.decoder import Decoder, Params
from d2l.target.generate import PREFILL_PIECE, Generator, Sampling, bucket

# Sizes are multiples of these, or coarser: few shapes to compile for, as many prompts are alike.
PREFIX_STEP, BRANCH_STEP, SLOT_STEP = 64, 32, 128
LOGIT_ROWS = 64  # response tokens whose logits exist at a time


@dataclasses.dataclass(frozen=True)
class Prefixes:
    """Texts that have been read.

    Attributes:
      lengths: int32 `[P]`, tokens of each.
      cache: their keys and values, a row each.
    """

    lengths: np.ndarray
    cache: Any


@dataclasses.dataclass(frozen=True)
class Branch:
    """A prompt that begins with a prefix.

    Attributes:
      prefix: index of it.
      ids: the tokens after it, at least one.
    """

    prefix: int
    ids: Sequence[int]


class PrefixGenerator(Generator):
    """A `Generator` of prompts with common beginnings; it gives what `Generator` gives for the whole prompts."""

    def __init__(self, config: TargetConfig, params: Params):
        super().__init__(config, params)

        def branch(cache, prefix_B, *, slots):
            """A row of `cache` for each entry of `prefix_B`, with room for `slots` tokens."""

            def rows(name, a):
                more = [(0, 0)] * a.ndim
                more[2 if name == "k" else 3] = (0, max(0, slots - a.shape[2 if name == "k" else 3]))
                return jnp.pad(jnp.take(a, prefix_B, axis=0), more)

            return [{name: rows(name, a) for name, a in layer.items()} for layer in cache]

        def top_k(params, cache, tokens_BT, positions_BT, row_R, index_R, *, k):
            decoder: Decoder = nnx.merge(self._graphdef, params)
            x_BTD, _, _ = decoder.run_blocks(decoder.embed(tokens_BT), positions_BT=positions_BT, cache=cache)
            x_RD = decoder.final_norm(x_BTD[row_R, index_R][None])[0]

            def best(x_rD):
                logits_rV = decoder.unembed(x_rD)
                top_rk, tokens_rk = jax.lax.top_k(logits_rV, k)
                return tokens_rk, top_rk - jax.nn.logsumexp(logits_rV, axis=-1, keepdims=True)

            out = jax.lax.map(best, x_RD.reshape(-1, LOGIT_ROWS, x_RD.shape[-1]))
            return jax.tree.map(lambda a: a.reshape(-1, k), out)

        self._branch = jax.jit(branch, static_argnames="slots")
        self._top_k = jax.jit(top_k, static_argnames="k")

    def read(self, prefixes: Sequence[Sequence[int]]) -> Prefixes:
        """Read token ids, rows of any length above 0, into a cache."""
        count = len(prefixes)
        rows, width = bucket(count), bucket(max(map(len, prefixes)), PREFIX_STEP)
        tokens, lengths = np.zeros((rows, width), np.int32), np.ones(rows, np.int32)
        for row, ids in enumerate(prefixes):
            tokens[row, : len(ids)], lengths[row] = ids, len(ids)
        slots = width if width <= PREFILL_PIECE else -(-width // PREFILL_PIECE) * PREFILL_PIECE
        _, cache = self._read(tokens, lengths, slots, None, None)
        return Prefixes(lengths, cache)

    def generate_after(
        self,
        prefixes: Prefixes,
        branches: Sequence[Branch],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int] = (),
        sampling: Sampling | None = None,
    ) -> list[list[int]]:
        """Token ids that follow each prompt, without the stop token; as `Generator.generate`."""
        rows, tokens, positions, cache = self._lay(prefixes, branches, max_new_tokens)
        last = np.array([len(branches[row].ids) - 1 for row in rows], np.int32)
        options = None if sampling is None else sampling.options()
        next_B, cache = self._continue(self.params, cache, tokens, positions, last, None, options)
        out: list[list[int]] = [[] for _ in branches]
        lengths = positions[:, 0] + last + 1
        for row, token in self._decode(next_B, cache, lengths, len(branches), max_new_tokens, stop_ids, None, options):
            out[row].append(token)
        return out

    def top_k_after(
        self, prefixes: Prefixes, branches: Sequence[Branch], responses: Sequence[Sequence[int]], k: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The likeliest tokens at each token of each response to a prompt, likeliest first.

        Returns:
          For each response, tokens int32 `[R, k]` and their log-probabilities over the full vocabulary, float32.
        """
        whole = [
            Branch(branch.prefix, [*branch.ids, *response[:-1]])  # the last token is predicted and never read
            for branch, response in zip(branches, responses, strict=True)
        ]
        _, tokens, positions, cache = self._lay(prefixes, whole, 0)
        counts = [len(response) for response in responses]
        size = bucket(sum(counts), LOGIT_ROWS)
        row, index = np.zeros((2, size), np.int32)
        ends = np.cumsum(counts)
        for i, (branch, end, count) in enumerate(zip(branches, ends, counts, strict=True)):
            row[end - count : end] = i
            index[end - count : end] = len(branch.ids) - 1 + np.arange(count)
        best = self._top_k(self.params, cache, tokens, positions, row, index, k=k)
        tokens_Rk, logp_Rk = (np.asarray(a) for a in best)
        return [(tokens_Rk[end - n : end], logp_Rk[end - n : end]) for end, n in zip(ends, counts, strict=True)]

    def _lay(
        self, prefixes: Prefixes, branches: Sequence[Branch], more: int
    ) -> tuple[list[int], np.ndarray, np.ndarray, Any]:
        """Branches as rows: which branch each is, tokens and positions int32 `[B, T]`, and a cache with room for `more`
        tokens. Rows are added for the bucket; they repeat the last one."""
        count = len(branches)
        rows = [min(row, count - 1) for row in range(bucket(count))]
        width = bucket(max(len(branch.ids) for branch in branches), BRANCH_STEP)
        tokens = np.zeros((len(rows), width), np.int32)
        prefix_B = np.array([branches[row].prefix for row in rows], np.int32)
        for place, row in enumerate(rows):
            tokens[place, : len(branches[row].ids)] = branches[row].ids
        positions = prefixes.lengths[prefix_B][:, None] + np.arange(width, dtype=np.int32)
        cache = self._branch(prefixes.cache, prefix_B, slots=bucket(int(positions.max()) + 1 + more, SLOT_STEP))
        return rows, tokens, positions, cache
