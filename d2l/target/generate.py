"""Sampling from the target: one compiled prefill per length bucket, one compiled decode step, KV cache.

A single row is decoded two tokens at a time where that costs no more than one: the second is a guess, the token that
followed the longest match of the row's end earlier in the row (Saxena 2023, prompt lookup decoding). Where the step
draws what was guessed, what it draws next counts too: the same tokens, but for the rounding of products of two rows.

Letters: B rows, T tokens, S cache slots, R adapter rank, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from d2l.errors import UserError
from d2l.target.config import TargetConfig
from d2l.target.decoder import Decoder, Params, abstract_decoder, init_cache, unstack_params
from d2l.target.factors import adapter_layers

PREFILL_PIECE = 2048  # longer prompts go through the decoder in pieces of this many tokens


def bucket(size: int, smallest: int = 1, parts: int = 4) -> int:
    """The next of smallest * (1 + i / parts) * 2^n: few shapes to compile for, at most 1 / (parts + 1) of each unused.

    Below `parts` * `smallest` the buckets are its multiples; `parts` is a power of two.
    """
    units = -(-size // smallest)
    step = max(1, (1 << (units - 1).bit_length() - 1) // parts) if units > 1 else 1
    return -(-units // step) * step * smallest


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      temperature: 0 takes the likeliest token; otherwise logits are divided by it.
      top_k: draw among the k likeliest tokens only; 0 is no limit.
      top_p: draw among the likeliest tokens that together hold this probability, in (0, 1].
      seed: two runs with the same seed and the same rows draw the same tokens.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not self.temperature >= 0:
            raise UserError(f"temperature is {self.temperature}: give 0 (greedy) or more.")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}: give 0 (no limit) or more.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}: give a probability in (0, 1].")

    def options(self) -> dict[str, jax.Array] | None:
        """What `sample` takes; None is greedy."""
        if self.temperature == 0:
            return None
        return {name: jnp.asarray(value) for name, value in dataclasses.asdict(self).items()}


def sample(
    logits_BV: jax.Array,
    sampling: dict[str, jax.Array] | None,
    positions_B: jax.Array,
    rows_B: jax.Array | None = None,
) -> jax.Array:
    """Next tokens int32 `[B]`; `sampling` None is greedy.

    Every row (default 0..B-1) and position draws from a key of its own, so a row does not depend on how far the others
    are.
    """
    if sampling is None:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    V = logits_BV.shape[-1]
    sorted_BV, order_BV = jax.lax.top_k(logits_BV / sampling["temperature"], V)
    before_BV = jnp.cumsum(jax.nn.softmax(sorted_BV, axis=-1), axis=-1) - jax.nn.softmax(sorted_BV, axis=-1)
    limit = jnp.where(sampling["top_k"] > 0, sampling["top_k"], V)
    kept_BV = (jnp.arange(V)[None, :] < limit) & (before_BV < sampling["top_p"])
    sorted_BV = jnp.where(kept_BV, sorted_BV, -jnp.inf)

    def draw(row, position, logits_V):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(sampling["seed"]), row), position)
        return jax.random.categorical(key, logits_V)

    rows_B = jnp.arange(logits_BV.shape[0]) if rows_B is None else rows_B
    place_B = jax.vmap(draw)(rows_B, positions_B, sorted_BV)
    return jnp.take_along_axis(order_BV, place_B[:, None], axis=-1)[:, 0].astype(jnp.int32)


GUESS_MATCH = 3  # tokens at a row's end that are looked for earlier in it, at most


def guess_next(ids_S: jax.Array, length: jax.Array) -> jax.Array:
    """What followed the longest (then latest) earlier match of the last tokens of `ids_S[:length]`, int32 scalar.

    Without any match some token of the row; `length` is at least 1.
    """
    S = ids_S.shape[0]
    place_S = jnp.arange(S)
    matched_S = score_S = jnp.ones(S, jnp.int32)
    for back in range(GUESS_MATCH):
        wanted = ids_S[jnp.maximum(length - 1 - back, 0)]
        seen_S = (jnp.roll(ids_S, back) == wanted) & (place_S >= back) & (length > back)
        matched_S = matched_S * seen_S.astype(jnp.int32)
        score_S = score_S + matched_S * S
    score_S = jnp.where(place_S < length - 1, score_S + place_S, 0)
    return ids_S[jnp.argmax(score_S) + 1]


class Generator:
    """Continues prompts with a frozen target.

    Args:
      params: of a stacked decoder; the layers are taken apart once, since that decodes faster on a CPU.
      guess: whether a single row is decoded with a guess of the token after next; default: where that is free, on
        accelerators and in bfloat16.
    """

    def __init__(self, config: TargetConfig, params: Params, *, guess: bool | None = None):
        self.config = config
        self.params = unstack_params(params, config.num_hidden_layers)
        self.dtype = params["embed_tokens"].dtype
        # A CPU multiplies two bfloat16 rows in about the time of one (`few_rows`), two float32 rows in twice that.
        self.guess = (jax.default_backend() != "cpu" or self.dtype == jnp.bfloat16) if guess is None else guess
        self._graphdef = abstract_decoder(config, stacked=False)[0]

        def run_pair(params, cache, ids_S, length, adapter, sampling):
            """The token after `ids_S[:length]` and, if `guess_next` was right, the one after it: two ids, and how many
            count; then the cache, and `ids_S` and `length` with what counts."""
            decoder: Decoder = nnx.merge(self._graphdef, params)
            guessed = guess_next(ids_S, length)
            tokens_BT, positions_BT = jnp.stack([ids_S[length - 1], guessed])[None], length - 1 + jnp.arange(2)[None]
            x_BTD, cache, _ = decoder.run_blocks(
                decoder.embed(tokens_BT), positions_BT=positions_BT, cache=cache, adapter=adapter
            )
            logits_TV = decoder.unembed(decoder.final_norm(x_BTD))[0]
            next_T = sample(logits_TV, sampling, positions_BT[0], jnp.zeros(2, jnp.int32))
            count = 1 + (next_T[0] == guessed).astype(jnp.int32)
            ids_S = ids_S.at[length + jnp.arange(2)].set(next_T, mode="drop")
            return (next_T, count), cache, ids_S, length + count

        self._pair = jax.jit(run_pair, donate_argnums=(1, 2))
        self._prefill = jax.jit(functools.partial(self._run, fresh=True), donate_argnums=1)
        self._continue = jax.jit(functools.partial(self._run, fresh=False), donate_argnums=1, static_argnames="top_k")

    def _run(
        self,
        params,
        cache,
        tokens_BT,
        positions_BT,
        last_B,
        adapter,
        sampling,
        rows_B=None,
        *,
        fresh: bool,
        top_k: int = 0,
    ):
        """The token after `tokens_BT[:, : last_B + 1]` and the cache; with `top_k` also the likeliest tokens there and
        their log-probabilities `[B, k]`."""
        decoder: Decoder = nnx.merge(self._graphdef, params)
        x_BTD, cache, _ = decoder.run_blocks(
            decoder.embed(tokens_BT), positions_BT=positions_BT, cache=cache, adapter=adapter, fresh=fresh
        )
        x_BD = jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)[:, 0]
        logits_BV = decoder.unembed(decoder.final_norm(x_BD))
        positions_B = jnp.take_along_axis(positions_BT, last_B[:, None], axis=1)[:, 0]
        next_B = sample(logits_BV, sampling, positions_B, rows_B)
        if not top_k:
            return next_B, cache
        top_Bk, tokens_Bk = jax.lax.top_k(logits_BV, top_k)
        return next_B, cache, (tokens_Bk, top_Bk - jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True))

    def cache_nbytes(self, tokens: int) -> int:
        """Bytes of the KV cache of one row of `tokens` tokens."""
        c = self.config
        return 2 * c.num_hidden_layers * tokens * c.num_key_value_heads * c.head_dim * self.dtype.itemsize

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 64,
        stop_ids: Sequence[int] = (),
        adapter: Any = None,
        sampling: Sampling | None = None,
        on_token: Callable[[int, int], None] | None = None,
    ) -> list[list[int]]:
        """Token ids that follow each prompt, without the stop token.

        Args:
          prompts: token ids, rows of any length above 0.
          adapter: `{module: {"A": [L, B or 1, R, d_in], "B": [L, B or 1, R, d_out]}}`, scale folded into B.
          on_token: called with (row, id) as tokens come, stop tokens excluded.
        """
        out: list[list[int]] = [[] for _ in prompts]
        for row, token in self.stream(
            prompts, max_new_tokens=max_new_tokens, stop_ids=stop_ids, adapter=adapter, sampling=sampling
        ):
            out[row].append(token)
            if on_token is not None:
                on_token(row, token)
        return out

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 64,
        stop_ids: Sequence[int] = (),
        adapter: Any = None,
        sampling: Sampling | None = None,
    ) -> Iterator[tuple[int, int]]:
        """Yields (row, id) as tokens come; arguments as in `generate`."""
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}: give 1 or more.")
        if not prompts or not all(map(len, prompts)):
            raise UserError("a prompt is empty: give at least one token for each.")
        # ---- shapes: rows, prompt and cache in buckets; rows added for the bucket repeat the last one
        count, rows = len(prompts), bucket(len(prompts))
        lengths = np.array([len(prompt) for prompt in prompts] + [len(prompts[-1])] * (rows - count), np.int32)
        width = bucket(int(lengths.max()), 32)
        tokens = np.zeros((rows, width), np.int32)
        for row in range(rows):
            tokens[row, : lengths[row]] = prompts[min(row, count - 1)]
        pieces = -(-width // PREFILL_PIECE)
        read = width if pieces == 1 else pieces * PREFILL_PIECE
        slots = bucket(max(read, int(lengths.max()) + max_new_tokens), 32)
        adapter = self._fit(adapter, rows)
        options = None if sampling is None else sampling.options()
        next_B, cache = self._read(tokens, lengths, slots, adapter, options)
        ends = (max_new_tokens, stop_ids, adapter, options)
        if rows == 1 and self.guess:
            yield from self._decode_pairs(next_B, cache, prompts[0], slots, *ends)
        else:
            yield from self._decode(next_B, cache, lengths, count, *ends)

    def stream_after(
        self, cache: Any, length: int, prompt: Sequence[int], *, max_new_tokens: int = 64, stop_ids: Sequence[int] = ()
    ) -> Iterator[tuple[int, int]]:
        """As `stream`, greedily, for one prompt that goes on from a cache in which `length` tokens stand.

        Args:
          cache: of one row and unstacked layers, with room for a bucket of the prompt and for what comes after it; it
            is donated.
        """
        tokens = np.zeros((1, bucket(len(prompt), 32)), np.int32)
        tokens[0, : len(prompt)] = prompt
        positions = np.arange(length, length + tokens.shape[1], dtype=np.int32)[None]
        last = np.array([len(prompt) - 1], np.int32)
        next_B, cache = self._continue(self.params, cache, tokens, positions, last, None, None)
        yield from self._decode(next_B, cache, length + last + 1, 1, max_new_tokens, stop_ids, None, None)

    def _decode(
        self,
        next_B: jax.Array,
        cache: Any,
        lengths: np.ndarray,
        count: int,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        adapter: Any,
        options: Any,
    ) -> Iterator[tuple[int, int]]:
        """(row, id) of the first `count` rows, one token a step from `next_B` on; `lengths` tokens are in the cache."""
        positions = lengths.copy()
        open_rows = set(range(count))
        rows = np.zeros(len(lengths), np.int32)
        for produced in range(1, max_new_tokens + 1):
            last = produced == max_new_tokens
            if not last:
                # Asked for before this token is looked at, so that nobody waits for Python; unused after the last stop.
                following = self._continue(
                    self.params, cache, next_B[:, None], positions[:, None], rows, adapter, options
                )
                positions = positions + 1  # a new array: the step still reads the old one
            ids = np.asarray(next_B)
            for row in sorted(open_rows):
                if ids[row] in stop_ids:
                    open_rows.discard(row)
                else:
                    yield row, int(ids[row])
            if last or not open_rows:
                return
            next_B, cache = following

    def _decode_pairs(
        self,
        next_B: jax.Array,
        cache: Any,
        prompt: Sequence[int],
        slots: int,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        adapter: Any,
        options: Any,
    ) -> Iterator[tuple[int, int]]:
        """As `_decode` for a single row, with guesses."""
        ids_S = jnp.zeros(slots, jnp.int32).at[: len(prompt)].set(np.asarray(prompt, np.int32))
        ids_S, length = ids_S.at[len(prompt)].set(next_B[0], mode="drop"), jnp.int32(len(prompt) + 1)
        drawn, count, produced = next_B, 1, 0
        while produced < max_new_tokens:
            if produced + 1 < max_new_tokens:  # asked for before these are looked at, as in `_decode`
                following, cache, ids_S, length = self._pair(self.params, cache, ids_S, length, adapter, options)
            for token in np.asarray(drawn)[: int(count)][: max_new_tokens - produced].tolist():
                if token in stop_ids:
                    return
                yield 0, token
                produced += 1
            if produced < max_new_tokens:
                drawn, count = following

    def _read(
        self, tokens: np.ndarray, lengths: np.ndarray, slots: int, adapter: Any, options: Any
    ) -> tuple[jax.Array, Any]:
        """Prefill: the token after each prompt, and the cache.

        Rows are padded on the right: what padding writes into the cache lies after a row's last token, where decoding
        overwrites it before any query sees it.
        """
        rows, width = tokens.shape
        cache = init_cache(self.config, rows, slots, self.dtype, stacked=False)
        if width <= PREFILL_PIECE:
            positions = np.broadcast_to(np.arange(width, dtype=np.int32), (rows, width))
            return self._prefill(self.params, cache, tokens, positions, lengths - 1, adapter, options)
        chosen = jnp.zeros(rows, jnp.int32)
        for start in range(0, width, PREFILL_PIECE):
            piece = tokens[:, start : start + PREFILL_PIECE]
            piece = np.pad(piece, ((0, 0), (0, PREFILL_PIECE - piece.shape[1])))
            positions = np.broadcast_to(np.arange(start, start + PREFILL_PIECE, dtype=np.int32), piece.shape)
            last = np.clip(lengths - 1 - start, 0, PREFILL_PIECE - 1)
            next_B, cache = self._continue(self.params, cache, piece, positions, last, adapter, options)
            ends_here = (lengths - 1 >= start) & (lengths - 1 < start + PREFILL_PIECE)
            chosen = jnp.where(ends_here, next_B, chosen)
        return chosen, cache

    def _fit(self, adapter: Any, rows: int) -> Any:
        """The adapter layer by layer, its rank and rows padded to a bucket."""
        if adapter is None:
            return None

        def pad(array):
            contexts, rank = array.shape[1:3]
            more = 0 if contexts == 1 else rows - contexts
            return jnp.pad(array, ((0, 0), (0, more), (0, bucket(rank) - rank), (0, 0)))

        return adapter_layers(jax.tree.map(pad, adapter), self.config.num_hidden_layers)
