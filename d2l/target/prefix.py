"""Many prompts that begin with one of a few texts: each text is read once, and its keys and values serve them all.

Letters: P prefixes, B rows, T tokens, R response tokens, k tokens kept.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d2l.target.config import TargetConfig
from d2l.target.decoder import Params, init_cache
from d2l.target.generate import PREFILL_PIECE, Generator, Sampling, bucket

# Sizes are multiples of these, or coarser: few shapes to compile for, as many prompts are alike.
PREFIX_STEP, BRANCH_STEP, SLOT_STEP = 64, 16, 128


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


@dataclasses.dataclass(frozen=True)
class Continuation:
    """What follows a prompt.

    Attributes:
      ids: its tokens; the last one is a stop token unless there was no room for more.
      ended: whether a stop token ended it.
      best: if asked for, the likeliest tokens int32 `[R, k]` at each of them, likeliest first, and their
        log-probabilities over the full vocabulary, float32.
    """

    ids: list[int]
    ended: bool
    best: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def said(self) -> list[int]:
        """Its tokens without the stop token."""
        return self.ids[:-1] if self.ended else self.ids


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

        def insert(rows, more, row_G):
            """`more` in the rows `row_G` of `rows`, a tree of arrays; those past the last one are left out."""
            return jax.tree.map(lambda a, new: a.at[row_G].set(new, mode="drop"), rows, more)

        self._insert = jax.jit(insert, donate_argnums=0)
        self._branch = jax.jit(branch, static_argnames="slots")

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
        top_k: int = 0,
    ) -> list[Continuation]:
        """What follows each prompt; tokens as in `Generator.generate`.

        Args:
          rows: prompts that are continued at a time (default: all). Where some have ended, others take their rows.
          top_k: likeliest tokens to keep at each token, before any temperature.
        """
        options = None if sampling is None else sampling.options()
        rows = bucket(min(rows or len(branches), len(branches)))
        group = max(1, rows // 4)  # prompts that are begun together: waiting for more leaves rows idle
        slots = self._slots(prefixes, branches, max_new_tokens)
        cache = init_cache(self.config, rows, slots, self.dtype, stacked=False)
        drawn = [jnp.zeros(rows, jnp.int32)]  # each row's next token; then the likeliest ones, if asked for
        if top_k:
            drawn.append((jnp.zeros((rows, top_k), jnp.int32), jnp.zeros((rows, top_k), jnp.float32)))
        last_B, positions, branch_B = np.zeros((3, rows), np.int32)
        # Prompts of about the same length are begun together.
        waiting = sorted(range(len(branches)), key=lambda i: (len(branches[i].ids), i))
        ids: list[list[int]] = [[] for _ in branches]
        best: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in branches]
        taken: dict[int, int] = {}  # which branch a row continues
        while waiting or taken:
            while waiting and (not taken or rows - len(taken) >= min(group, len(waiting))):
                begun, waiting = waiting[:group], waiting[group:]
                free = [row for row in range(rows) if row not in taken][: len(begun)]
                which, tokens, at, more = self._lay(prefixes, [branches[i] for i in begun], slots=slots, rows=group)
                last = np.array([len(branches[begun[i]].ids) - 1 for i in which], np.int32)
                of = np.array([begun[i] for i in which], np.int32)
                first, more, *top = self._continue(self.params, more, tokens, at, last, None, options, of, top_k=top_k)
                places = np.array([*free, *[rows] * (group - len(begun))], np.int32)
                cache, drawn = self._insert((cache, drawn), (more, [first, *top]), places)
                positions, branch_B = positions.copy(), branch_B.copy()
                positions[free], branch_B[free] = (at[:, 0] + last + 1)[: len(begun)], begun
                taken |= dict(zip(free, begun, strict=True))
            # Asked for before these tokens are looked at, so that nobody waits for Python.
            at = positions[:, None]
            following, cache, *top = self._continue(
                self.params, cache, drawn[0][:, None], at, last_B, None, options, branch_B, top_k=top_k
            )
            next_B, *likeliest = jax.tree.map(np.asarray, drawn)
            for row, branch in list(taken.items()):
                token = int(next_B[row])
                ids[branch].append(token)
                best[branch] += [(tokens_Bk[row], logp_Bk[row]) for tokens_Bk, logp_Bk in likeliest]
                if token in stop_ids or len(ids[branch]) == max_new_tokens:
                    del taken[row]
            drawn, positions = [following, *top], positions + 1  # a new array: the step still reads the old one
        return [
            Continuation(tokens, tokens[-1] in stop_ids, tuple(map(np.stack, zip(*top, strict=True))) if top else None)
            for tokens, top in zip(ids, best, strict=True)
        ]

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
