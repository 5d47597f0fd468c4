"""Packing examples into the arrays of one group: several chunks, queries and contexts share a row.

Letters: N rows of context tokens, S their length, K chunks, C contexts, Q rows of queries, T their length, U contexts
of a query row, P rows of teacher prompts, V their length, R response tokens, k teacher tokens kept.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from d2l.errors import UserError

Batch = dict[str, np.ndarray]
PADDING = -1  # segment of padding, context of a chunk that is not there


@dataclasses.dataclass(frozen=True)
class Query:
    """One question about a document, as token ids.

    Attributes:
      prompt: the question in its chat turn, with a generation prompt.
      response: the answer and the end-of-turn token.
      teacher_prompt: the same question with the document before it; only where the step computes the teacher.
      teacher: the teacher's answer stored ahead: its likeliest tokens int32 `[len(response), k]` and their
        log-probabilities float32 `[len(response), k]`.
    """

    prompt: Sequence[int]
    response: Sequence[int]
    teacher_prompt: Sequence[int] = ()
    teacher: tuple[np.ndarray, np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class Example:
    """One document and what is asked about it.

    Attributes:
      chunks: token ids of each chunk of the document, in its chat turn.
      queries: at least one.
    """

    chunks: Sequence[Sequence[int]]
    queries: Sequence[Query]


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Sizes of one group; the step compiles once for each.

    Attributes:
      contexts, chunks, responses: C, K and R.
      ctx_rows, ctx_tokens: N and S.
      query_rows, query_tokens: Q and T.
      row_chunks: chunks packed in a context row, at most.
      row_contexts: U, different contexts in a query row, at most; each has its own adapter there.
      max_chunks: chunks of one context, at most.
      teacher_rows, teacher_tokens: P and V; 0 without a teacher in the step.
      teacher_top_k: k; 0 without a stored teacher.
    """

    contexts: int
    chunks: int
    ctx_rows: int
    ctx_tokens: int
    query_rows: int
    query_tokens: int
    responses: int
    row_chunks: int = 1
    row_contexts: int = 1
    max_chunks: int = 1
    teacher_rows: int = 0
    teacher_tokens: int = 0
    teacher_top_k: int = 0


class TooLarge(UserError):
    """Not even an empty group has room for an example."""


class _Rows:
    """Rows that fill up, segment by segment.

    Attributes:
      parts: token ids of each segment and its context, by row.
      contexts: different contexts of each row, in the order they came.
      used: tokens in each row.
    """

    def __init__(self, name: str, count: int, size: int, segments: int, contexts: int):
        self.name, self.count, self.size = name, count, size
        self.most_segments, self.most_contexts = segments, contexts
        self.parts: list[list[tuple[Sequence[int], int]]] = [[] for _ in range(count)]
        self.contexts: list[list[int]] = [[] for _ in range(count)]
        self.used = [0] * count

    def place(self, context: int, ids: Sequence[int]) -> int | None:
        """Put a segment into the fullest row that has room, one that holds its context first; None: there is none."""
        best, room = None, self.size - len(ids)
        for row, used in enumerate(self.used):
            if used > room or len(self.parts[row]) >= self.most_segments:
                continue
            known = context in self.contexts[row]
            if (known or len(self.contexts[row]) < self.most_contexts) and (best is None or (known, used) > best[:2]):
                best = known, used, row
        if best is None:
            return None
        known, _, row = best
        self.parts[row].append((ids, context))
        self.used[row] += len(ids)
        if not known:
            self.contexts[row].append(context)
        return row

    def take_back(self, row: int) -> None:
        """Undo the last `place` into a row."""
        ids, context = self.parts[row].pop()
        self.used[row] -= len(ids)
        if all(context != other for _, other in self.parts[row]):
            self.contexts[row].remove(context)

    def arrays(self, prefix: str, pad_id: int) -> Batch:
        """`{prefix}_tokens`, `_segments` and `_positions`, int32 `[rows, size]`."""
        shape = (self.count, self.size)
        tokens, segments = np.full(shape, pad_id, np.int32), np.full(shape, PADDING, np.int32)
        positions = np.zeros(shape, np.int32)
        for row, parts in enumerate(self.parts):
            start = 0
            for segment, (ids, _) in enumerate(parts):
                stop = start + len(ids)
                tokens[row, start:stop], segments[row, start:stop] = ids, segment
                positions[row, start:stop] = np.arange(len(ids))
                start = stop
        return {f"{prefix}_tokens": tokens, f"{prefix}_segments": segments, f"{prefix}_positions": positions}


class Packer:
    """Fills one group, example by example.

    Args:
      shapes: sizes of the group.
      pad_id: token id of padding.
    """

    def __init__(self, shapes: Shapes, pad_id: int):
        s = shapes
        self.shapes, self.pad_id = shapes, pad_id
        self.examples: list[Example] = []
        most = max(s.query_tokens, s.teacher_tokens)  # no row holds more segments than tokens
        self._ctx = _Rows("chunks", s.ctx_rows, s.ctx_tokens, s.row_chunks, s.row_chunks)
        self._query = _Rows("prompts with their response", s.query_rows, s.query_tokens, most, s.row_contexts)
        self._teacher = _Rows("teacher prompts with their response", s.teacher_rows, s.teacher_tokens, most, most)
        self._chunks: list[tuple[int, int, int]] = []  # (place, context, slot)
        self._responses: list[dict[str, np.ndarray]] = []  # of each query, fields of its tokens
        self._count = 0  # response tokens

    def add(self, example: Example) -> bool:
        """Add an example whole, or not at all.

        Returns:
          Whether it found room; the group is unchanged if not.

        Raises:
          TooLarge: not even an empty group has room for it.
          UserError: its stored teacher is not of the expected shape.
        """
        placed: list[tuple[_Rows, int]] = []
        missing = self._over(example) or self._place(example, placed)
        if missing is None:
            return True
        for rows, row in reversed(placed):
            rows.take_back(row)
        self._missing = f"{missing}: nothing is ever cut off, raise the shapes in the config."
        if not self.examples:
            raise TooLarge(self._missing)
        return False

    def add_all(self, examples: Sequence[Example]) -> None:
        """Add examples that have to fit; a `UserError` says what has no room."""
        for example in examples:
            if not self.add(example):
                raise UserError(self._missing)

    def _over(self, example: Example) -> str | None:
        """What of the group an example is too much for."""
        s = self.shapes
        for name, count, room in (
            ("contexts", len(self.examples) + 1, s.contexts),
            ("chunks of one context", len(example.chunks), s.max_chunks),
            ("chunks", len(self._chunks) + len(example.chunks), s.chunks),
            ("response tokens", self._count + sum(len(q.response) for q in example.queries), s.responses),
        ):
            if count > room:
                return f"a group has {count} {name}, its shapes have room for {room}"
        return None

    def _place(self, example: Example, placed: list[tuple[_Rows, int]]) -> str | None:
        """Find rows for an example and keep it; else say what found none. `placed` is what was put down on the way."""
        s, context = self.shapes, len(self.examples)

        def place(rows: _Rows, ids: Sequence[int]) -> int:
            row = rows.place(context, ids)
            if row is None:
                raise _NoRoom(
                    f"a group has {rows.name} of {len(ids)} tokens, its {rows.count} rows of {rows.size} have no room "
                    f"for {'it' if rows is self._query else 'them'}"
                )
            placed.append((rows, row))
            return row

        chunks: list[tuple[int, int, int]] = []
        responses: list[dict[str, np.ndarray]] = []
        try:
            for slot, ids in enumerate(example.chunks):
                row = place(self._ctx, ids)
                chunks.append((row * s.row_chunks + len(self._ctx.parts[row]) - 1, context, slot))
            for query in example.queries:
                R = len(query.response)
                fields = {"tokens": np.asarray(query.response, np.int32)}
                fields["weight"] = np.full(R, 1.0 / (R * len(example.queries)), np.float32)
                if s.teacher_rows and not len(query.teacher_prompt):
                    raise UserError("a query has no teacher prompt: make examples with teacher=True.")
                for name, rows, prompt in self._prompts(query):
                    row = place(rows, [*prompt, *query.response[:-1]])  # the last token is predicted and never read
                    stop = rows.used[row]
                    fields[f"{name}row"] = np.full(R, row, np.int32)
                    fields[f"{name}index"] = np.arange(stop - R, stop, dtype=np.int32)
                if s.teacher_top_k:
                    fields["top_tokens"], fields["top_logp"] = _stored_teacher(query, s.teacher_top_k)
                responses.append(fields)
        except _NoRoom as error:
            return str(error)
        self.examples.append(example)
        self._chunks += chunks
        self._responses += responses
        self._count += sum(len(fields["tokens"]) for fields in responses)
        return None

    def _prompts(self, query: Query) -> list[tuple[str, _Rows, Sequence[int]]]:
        prompts = [("", self._query, query.prompt)]
        return [*prompts, ("teacher_", self._teacher, query.teacher_prompt)] if self.shapes.teacher_rows else prompts

    def finish(self) -> tuple[Batch, int, int]:
        """The group, how many token positions of its rows are used, and how many there are.

        Fields, int32 unless said:
          ctx_tokens, ctx_segments, ctx_positions `[N, S]`: chunks; the segment is a chunk's place in its row, -1 at
            padding, and positions start at 0 in each.
          chunk_place, chunk_context, chunk_slot `[K]`: row * row_chunks + segment, the context (-1: no chunk) and the
            place in that context.
          context_weight float32 `[C]`: 1, or 0 where there is no context.
          query_tokens, query_segments, query_positions `[Q, T]`: prompts with their responses.
          query_contexts `[Q, U]`, query_slots `[Q, T]`: contexts of a row, and which of them a token is about.
          response_row, response_index `[R]`: row of `query_tokens` and the position in it that predicts the token.
          response_tokens, response_query `[R]`: the token, and a number for each query.
          response_weight float32 `[R]`: 1 / (tokens of its response * queries of its context), 0 at padding.
          teacher_tokens, teacher_segments, teacher_positions `[P, V]`, teacher_row, teacher_index `[R]`: the same
            responses after document and question; only where `shapes.teacher_rows` is set.
          teacher_top_tokens, teacher_top_logp (float32) `[R, k]`: only where `shapes.teacher_top_k` is set.
        """
        s = self.shapes
        kinds = {"ctx": self._ctx, "query": self._query} | ({"teacher": self._teacher} if s.teacher_rows else {})
        batch: Batch = {}
        for name, rows in kinds.items():
            batch |= rows.arrays(name, self.pad_id)
        chunks = self._chunks + [(0, PADDING, 0)] * (s.chunks - len(self._chunks))
        for name, column in zip(("place", "context", "slot"), zip(*chunks, strict=True), strict=True):
            batch[f"chunk_{name}"] = np.array(column, np.int32)
        batch["context_weight"] = (np.arange(s.contexts) < len(self.examples)).astype(np.float32)
        batch["query_contexts"] = np.zeros((s.query_rows, s.row_contexts), np.int32)
        batch["query_slots"] = np.zeros((s.query_rows, s.query_tokens), np.int32)
        for row, contexts in enumerate(self._query.contexts):
            batch["query_contexts"][row, : len(contexts)] = contexts
            start = 0
            for ids, context in self._query.parts[row]:
                batch["query_slots"][row, start : start + len(ids)] = contexts.index(context)
                start += len(ids)

        for name in ("row", "index", "tokens"):
            batch[f"response_{name}"] = self._flat(name, (), np.int32)
        batch["response_weight"] = self._flat("weight", (), np.float32)
        number = [np.full(len(fields["tokens"]), query, np.int32) for query, fields in enumerate(self._responses)]
        spare = np.full(s.responses - self._count, s.responses - 1, np.int32)
        batch["response_query"] = np.concatenate([*number, spare])
        if s.teacher_rows:
            batch |= {f"teacher_{name}": self._flat(f"teacher_{name}", (), np.int32) for name in ("row", "index")}
        if s.teacher_top_k:
            batch["teacher_top_tokens"] = self._flat("top_tokens", (s.teacher_top_k,), np.int32)
            batch["teacher_top_logp"] = self._flat("top_logp", (s.teacher_top_k,), np.float32)
        used = sum(sum(rows.used) for rows in kinds.values())
        return batch, used, sum(rows.count * rows.size for rows in kinds.values())

    def _flat(self, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """One field of all response tokens, zero at padding."""
        out = np.zeros((self.shapes.responses, *shape), dtype)
        start = 0
        for fields in self._responses:
            stop = start + len(fields[name])
            out[start:stop] = fields[name]
            start = stop
        return out


class _NoRoom(Exception):
    """No row has room for a segment."""


def _stored_teacher(query: Query, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    expected = (len(query.response), top_k)
    given = () if query.teacher is None else tuple(map(np.shape, query.teacher))
    if given != (expected, expected):
        raise UserError(
            f"a query has a stored teacher of shapes {given}, expected twice {expected}: generate the data again with "
            f"{top_k} tokens kept."
        )
    return query.teacher


def stack_groups(groups: Sequence[Batch], accumulate: int) -> Batch:
    """Groups as one batch `{name: [accumulate, groups / accumulate, ...]}`; group p is at [p % accumulate, p //
    accumulate], so that consecutive groups are those of one host."""
    return {
        name: np.swapaxes(
            np.stack([group[name] for group in groups]).reshape(-1, accumulate, *groups[0][name].shape), 0, 1
        )
        for name in groups[0]
    }


def batch_shapes(shapes: Shapes, *, accumulate: int = 1, groups: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch, for lowering the step without data."""
    batch, _, _ = Packer(shapes, 0).finish()
    return {name: jax.ShapeDtypeStruct((accumulate, groups, *a.shape), a.dtype) for name, a in batch.items()}
