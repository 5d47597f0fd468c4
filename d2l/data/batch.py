"""Training batches of static shape.

Letters: N chunks of all contexts, C contexts, Q queries, S tokens of a wrapped chunk, T tokens of a prompt with its
response, U tokens of the teacher's prompt with its response, R response tokens.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from d2l.data.chunk import draw_num_chunks
from d2l.data.niah import NEEDLE, QUESTION, make_needle
from d2l.errors import UserError
from d2l.hypernet.chunk import split_into
from d2l.target.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Sizes of a batch; the step compiles once for each.

    Attributes:
      chunks, contexts, queries: N, C and Q.
      ctx_tokens, query_tokens, teacher_tokens, response_tokens: S, T, U (0: no teacher) and R.
    """

    contexts: int
    chunks: int
    queries: int
    ctx_tokens: int
    query_tokens: int
    response_tokens: int
    teacher_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Example:
    """One document and what is asked about it.

    Attributes:
      chunks: token ids of the document, cut.
      queries: pairs of question and answer.
    """

    chunks: Sequence[Sequence[int]]
    queries: Sequence[tuple[str, str]]


def make_batch(examples: Sequence[Example], tokenizer: Tokenizer, shapes: Shapes) -> Batch:
    """Pack examples into arrays, padded on the right.

    Fields, int32 unless said:
      ctx_tokens `[N, S]`, ctx_mask bool `[N, S]`: every chunk in its chat turn.
      chunk_context `[N]`, chunk_slot `[N]`: context of a chunk (-1: padding) and its place there.
      query_tokens `[Q, T]`, query_context `[Q]`: question in its chat turn, then the answer and the end-of-turn token.
      response_index, response_tokens `[Q, R]`, response_mask bool: positions that predict the response, and what.
      query_weight float32 `[Q]`: 1 / (queries of its context * contexts), 0 for padding.
      teacher_tokens `[Q, U]`, teacher_index `[Q, R]`: the same with the document before the question; only where
        `shapes.teacher_tokens` is set.

    Raises:
      UserError: an example is larger than the shapes; nothing is ever cut off.
    """
    s, pad = shapes, tokenizer.pad_id
    prefix, suffix = tokenizer.turn_wrapper
    batch = {
        "ctx_tokens": np.full((s.chunks, s.ctx_tokens), pad, np.int32),
        "ctx_mask": np.zeros((s.chunks, s.ctx_tokens), bool),
        "chunk_context": np.full(s.chunks, -1, np.int32),
        "chunk_slot": np.zeros(s.chunks, np.int32),
        "query_tokens": np.full((s.queries, s.query_tokens), pad, np.int32),
        "query_context": np.zeros(s.queries, np.int32),
        "query_weight": np.zeros(s.queries, np.float32),
        "response_index": np.zeros((s.queries, s.response_tokens), np.int32),
        "response_tokens": np.zeros((s.queries, s.response_tokens), np.int32),
        "response_mask": np.zeros((s.queries, s.response_tokens), bool),
    }
    if s.teacher_tokens:
        batch["teacher_tokens"] = np.full((s.queries, s.teacher_tokens), pad, np.int32)
        batch["teacher_index"] = np.zeros((s.queries, s.response_tokens), np.int32)
    _check("contexts", len(examples), s.contexts)
    _check("chunks", sum(len(e.chunks) for e in examples), s.chunks)
    _check("queries", sum(len(e.queries) for e in examples), s.queries)
    row = query = 0
    for context, example in enumerate(examples):
        for slot, chunk in enumerate(example.chunks):
            ids = [*prefix, *chunk, *suffix]
            _check("tokens of a wrapped chunk", len(ids), s.ctx_tokens)
            batch["ctx_tokens"][row, : len(ids)] = ids
            batch["ctx_mask"][row, : len(ids)] = True
            batch["chunk_context"][row], batch["chunk_slot"][row] = context, slot
            row += 1
        for question, answer in example.queries:
            response = [*tokenizer.encode(answer), tokenizer.eos_ids[0]]
            count = len(response)
            _check("response tokens", count, s.response_tokens)
            asked = tokenizer.encode(question)
            prompt = [*prefix, *asked, *suffix]
            _fill(batch["query_tokens"][query], batch["response_index"][query], prompt, response)
            batch["response_tokens"][query, :count] = response
            batch["response_mask"][query, :count] = True
            batch["query_context"][query] = context
            batch["query_weight"][query] = 1.0 / (len(example.queries) * len(examples))
            if s.teacher_tokens:
                document = [i for chunk in example.chunks for i in chunk]
                prompt = [*prefix, *document, *tokenizer.encode("\n\n"), *asked, *suffix]
                _fill(batch["teacher_tokens"][query], batch["teacher_index"][query], prompt, response)
            query += 1
    return batch


def _fill(tokens_T: np.ndarray, index_R: np.ndarray, prompt: list[int], response: list[int]) -> None:
    """Write prompt and response, whose last token is predicted but never read."""
    ids = prompt + response[:-1]
    _check("tokens of a prompt with its response", len(ids), len(tokens_T))
    tokens_T[: len(ids)] = ids
    index_R[: len(response)] = np.arange(len(prompt) - 1, len(ids))


def _check(what: str, given: int, room: int) -> None:
    if given > room:
        raise UserError(f"a batch has {given} {what}, its shapes have room for {room}: raise them in the config.")


@dataclasses.dataclass(frozen=True)
class NeedleStage:
    """One stage of needle training.

    Attributes:
      contexts: documents a step; one query each.
      min_tokens, max_tokens: length of a document; 0, 0 is the needle alone.
      max_chunks, min_chunk_len, max_chunk_len: how documents are cut (`draw_num_chunks`).
      chunks: chunks of a batch, at most; the last documents are cut less, or drawn shorter, where more were needed.
      teacher: also make the teacher's prompts.
    """

    contexts: int
    min_tokens: int
    max_tokens: int
    max_chunk_len: int
    max_chunks: int = 1
    min_chunk_len: int = 1
    chunks: int | None = None
    teacher: bool = False


class NeedleBatches:
    """Batches of a stage, where batch i is a pure function of (seed, i)."""

    def __init__(self, stage: NeedleStage, tokenizer: Tokenizer, seed: int):
        self.stage, self.tokenizer, self.seed = stage, tokenizer, seed
        wrapper = sum(map(len, tokenizer.turn_wrapper))
        response = len(tokenizer.encode("0042")) + 1
        prompt = wrapper + len(tokenizer.encode(QUESTION)) + response - 1
        longest = max(stage.max_tokens, len(tokenizer.encode(NEEDLE.format("0042"))))
        self.longest = longest
        self.least = -(-max(stage.min_tokens, len(tokenizer.encode(NEEDLE.format("0042")))) // stage.max_chunk_len)
        self.shapes = Shapes(
            contexts=stage.contexts,
            chunks=stage.chunks or stage.contexts * stage.max_chunks,
            queries=stage.contexts,
            ctx_tokens=wrapper + min(longest, stage.max_chunk_len),
            query_tokens=prompt,
            response_tokens=response,
            teacher_tokens=prompt + longest + len(tokenizer.encode("\n\n")) if stage.teacher else 0,
        )
        if -(-longest // stage.max_chunk_len) > stage.max_chunks:
            raise UserError(
                f"documents of {longest} tokens do not fit into {stage.max_chunks} chunks of {stage.max_chunk_len}: "
                "raise max_chunks or max_chunk_len of the stage, or lower max_tokens."
            )
        if self.shapes.chunks < stage.contexts * self.least:
            raise UserError(
                f"{stage.contexts} documents need {stage.contexts * self.least} chunks or more, the stage has room for "
                f"{self.shapes.chunks}: raise chunks."
            )

    def __getitem__(self, index: int) -> Batch:
        stage, tokenizer = self.stage, self.tokenizer
        rng = np.random.default_rng((self.seed, index))
        documents, needles, needed = [], [], []
        for index in range(stage.contexts):
            # A document may be as long as leaves room for the shortest ones after it.
            room = self.shapes.chunks - sum(needed) - self.least * (stage.contexts - 1 - index)
            longest = min(self.longest, room * stage.max_chunk_len)
            needles.append(make_needle(rng, tokenizer, stage.min_tokens, longest))
            documents.append(tokenizer.encode(needles[-1].document))
            needed.append(-(-len(documents[-1]) // stage.max_chunk_len))
        spare = self.shapes.chunks - sum(needed)
        examples = []
        for needle, ids, least in zip(needles, documents, needed, strict=True):
            most = min(stage.max_chunks, least + spare)
            count = draw_num_chunks(rng, len(ids), stage.min_chunk_len, stage.max_chunk_len, most)
            spare -= count - least
            examples.append(Example(split_into(ids, count), [(needle.question, needle.answer)]))
        return make_batch(examples, tokenizer, self.shapes)

    def iterate(self, start: int, stop: int) -> Iterator[Any]:
        """Batches start..stop-1 through grain, built ahead by a thread."""
        data = grain.MapDataset.range(start, stop).map(self.__getitem__)
        return iter(data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))
