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
from d2l.target.decoder import Decoder, Params, init_cache
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
            """A row of `cache` for each entry of `prefix_B`, of `slots` tokens."""

            def rows(name, a):
                axis = 2 if name == "k" else 3
                more = [(0, 0)] * a.ndim
                more[axis] = (0, max(0, slots - a.shape[axis]))
                return jax.lax.slice_in_dim(jnp.pad(jnp.take(a, prefix_B, axis=0), more), 0, slots, axis=axis)

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

        def insert(cache, next_B, more, next_G, slot_G):
            """`more` in the rows `slot_G` of `cache`; those past the last one are left out."""

            def put(a, new):
                return a.at[slot_G].set(new, mode="drop")

            return jax.tree.map(put, cache, more), put(next_B, next_G)

        self._insert = jax.jit(insert, donate_argnums=(0, 1))
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
        rows: int | None = None,
    ) -> list[list[int]]:
        """Token ids that follow each prompt, without the stop token; as `Generator.generate`.

        Args:
          rows: prompts that are continued at a time (default: all). Where some have ended, others take their rows.
        """
        options = None if sampling is None else sampling.options()
        rows = bucket(min(rows or len(branches), len(branches)))
        group = max(1, rows // 4)  # prompts that are begun together: waiting for more leaves rows idle
        slots = self._slots(prefixes, branches, max_new_tokens)
        cache = init_cache(self.config, rows, slots, self.dtype, stacked=False)
        next_B, last_B = jnp.zeros(rows, jnp.int32), np.zeros(rows, np.int32)
        positions, branch_B = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        # Prompts of about the same length are begun together.
        waiting = sorted(range(len(branches)), key=lambda i: (len(branches[i].ids), i))
        out: list[list[int]] = [[] for _ in branches]
        taken: dict[int, int] = {}  # which branch a row continues
        while waiting or taken:
            while waiting and (not taken or rows - len(taken) >= min(group, len(waiting))):
                begun, waiting = waiting[:group], waiting[group:]
                free = [row for row in range(rows) if row not in taken][: len(begun)]
                which, tokens, at, more = self._lay(prefixes, [branches[i] for i in begun], slots=slots, rows=group)
                last = np.array([len(branches[begun[i]].ids) - 1 for i in which], np.int32)
                of = np.array([begun[i] for i in which], np.int32)
                first, more = self._continue(self.params, more, tokens, at, last, None, options, of)
                places = np.array([*free, *[rows] * (group - len(begun))], np.int32)
                cache, next_B = self._insert(cache, next_B, more, first, places)
                positions, branch_B = positions.copy(), branch_B.copy()
                positions[free], branch_B[free] = (at[:, 0] + last + 1)[: len(begun)], begun
                taken |= dict(zip(free, begun, strict=True))
            # Asked for before these tokens are looked at, so that nobody waits for Python.
            following, cache = self._continue(
                self.params, cache, next_B[:, None], positions[:, None], last_B, None, options, branch_B
            )
            for row, token in enumerate(np.asarray(next_B).tolist()):
                if row not in taken:
                    continue
                if token not in stop_ids:
                    out[taken[row]].append(token)
                if token in stop_ids or len(out[taken[row]]) == max_new_tokens:
                    del taken[row]
            next_B, positions = following, positions + 1  # a new array: the step still reads the old one
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
        slots, rows = self._slots(prefixes, whole, 0), bucket(len(whole))
        _, tokens, positions, cache = self._lay(prefixes, whole, slots=slots, rows=rows)
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

    @staticmethod
    def _slots(prefixes: Prefixes, branches: Sequence[Branch], more: int) -> int:
        """Slots that hold any of the branches, padded as `_lay` does, and `more` tokens."""
        longest = max(len(branch.ids) for branch in branches)
        return bucket(int(prefixes.lengths.max()) + bucket(longest, BRANCH_STEP) + more, SLOT_STEP)

    def _lay(
        self, prefixes: Prefixes, branches: Sequence[Branch], *, slots: int, rows: int
    ) -> tuple[list[int], np.ndarray, np.ndarray, Any]:
        """Branches as `rows` rows, which repeat the last branch: which branch each is, tokens and positions int32
        `[B, T]`, and a cache of `slots` slots."""
        which = [min(row, len(branches) - 1) for row in range(rows)]
        width = bucket(max(len(branch.ids) for branch in branches), BRANCH_STEP)
        tokens = np.zeros((rows, width), np.int32)
        prefix_B = np.array([branches[i].prefix for i in which], np.int32)
        for row, i in enumerate(which):
            tokens[row, : len(branches[i].ids)] = branches[i].ids
        positions = prefixes.lengths[prefix_B][:, None] + np.arange(width, dtype=np.int32)
        return which, tokens, positions, self._branch(prefixes.cache, prefix_B, slots=slots)
