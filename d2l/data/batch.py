"""Examples from texts, and the batches of needle training."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from d2l.data.chunk import CHUNK_PROBS, draw_num_chunks
from d2l.data.niah import NEEDLE, QUESTION, make_needle
from d2l.data.pack import Batch, Example, Packer, Query, Shapes, stack_groups
from d2l.errors import UserError
from d2l.hypernet.chunk import split_into
from d2l.target.tokenizer import Tokenizer


def make_example(
    chunks: Sequence[Sequence[int]],
    queries: Sequence[tuple[str, str]],
    tokenizer: Tokenizer,
    *,
    starts: Sequence[str] | None = None,
    teacher: bool = False,
) -> Example:
    """An example of a document that has been cut.

    Args:
      chunks: token ids of the document.
      queries: pairs of question and answer.
      starts: what of each reply is given before the answer; None: nothing.
      teacher: also make the prompts with the document in them.
    """
    prefix, suffix = tokenizer.turn_wrapper
    document = [i for chunk in chunks for i in chunk] + tokenizer.encode("\n\n") if teacher else []
    made = []
    for (question, answer), start in zip(queries, starts or [""] * len(queries), strict=True):
        asked, begun = tokenizer.encode(question), [*suffix, *tokenizer.encode(start)]
        response = [*tokenizer.encode(answer), tokenizer.eos_ids[0]]
        with_document = [*prefix, *document, *asked, *begun] if teacher else ()
        made.append(Query([*prefix, *asked, *begun], response, with_document))
    return Example([[*prefix, *chunk, *suffix] for chunk in chunks], made)


MOST_DRAWS = 100


@dataclasses.dataclass(frozen=True)
class NeedleStage:
    """One stage of needle training.

    Attributes:
      contexts: documents a step; one query each.
      min_tokens, max_tokens: length of a document; 0, 0 is the needle alone.
      max_chunks, min_chunk_len, max_chunk_len: how documents are cut (`draw_num_chunks`).
      chunk_counts: chunk counts to draw from, each as likely as it is often there; () is the paper's distribution.
      chunks: chunks of a batch, at most; the last documents are cut less, or drawn shorter, where more were needed.
      row_chunks, ctx_rows: chunks that share a row, at most, and rows of a batch, each as long as the longest chunk;
        documents that find no room together are drawn anew. By default every chunk has a row.
      teacher: also make the teacher's prompts.
    """

    contexts: int
    min_tokens: int
    max_tokens: int
    max_chunk_len: int
    max_chunks: int = 1
    min_chunk_len: int = 1
    chunk_counts: tuple[int, ...] = ()
    chunks: int | None = None
    row_chunks: int = 1
    ctx_rows: int | None = None
    teacher: bool = False


class NeedleBatches:
    """Batches of a stage, where batch i is a pure function of (seed, i).

    Args:
      accumulate, groups: the first two axes of a batch; documents are dealt to accumulate * groups packs.

    Raises:
      UserError: documents that do not fit into chunks, or packs that do not divide contexts and chunks.
    """

    def __init__(self, stage: NeedleStage, tokenizer: Tokenizer, seed: int, *, accumulate: int = 1, groups: int = 1):
        self.stage, self.tokenizer, self.seed = stage, tokenizer, seed
        self.accumulate, self.packs = accumulate, accumulate * groups
        wrapper = sum(map(len, tokenizer.turn_wrapper))
        response = len(tokenizer.encode("0042")) + 1
        prompt = wrapper + len(tokenizer.encode(QUESTION)) + response - 1
        longest = max(stage.max_tokens, len(tokenizer.encode(NEEDLE.format("0042"))))
        self.longest = longest
        self.least = -(-max(stage.min_tokens, len(tokenizer.encode(NEEDLE.format("0042")))) // stage.max_chunk_len)
        chunks = stage.chunks or stage.contexts * stage.max_chunks
        rows = stage.ctx_rows or chunks
        for name, count in (("contexts", stage.contexts), ("chunks", chunks), ("ctx_rows", rows)):
            if count % self.packs:
                raise UserError(f"a stage of {count} {name} cannot be dealt to {self.packs} packs: change either.")
        contexts, chunks = stage.contexts // self.packs, chunks // self.packs
        self.shapes = Shapes(
            contexts=contexts,
            chunks=chunks,
            ctx_rows=rows // self.packs,
            ctx_tokens=wrapper + min(longest, stage.max_chunk_len),
            query_rows=contexts,
            query_tokens=prompt,
            responses=contexts * response,
            row_chunks=stage.row_chunks,
            max_chunks=stage.max_chunks,
            teacher_rows=contexts if stage.teacher else 0,
            teacher_tokens=prompt + longest + len(tokenizer.encode("\n\n")) if stage.teacher else 0,
        )
        if -(-longest // stage.max_chunk_len) > stage.max_chunks:
            raise UserError(
                f"documents of {longest} tokens do not fit into {stage.max_chunks} chunks of {stage.max_chunk_len}: "
                "raise max_chunks or max_chunk_len of the stage, or lower max_tokens."
            )
        if rows * stage.row_chunks < chunks * self.packs:
            raise UserError(
                f"{rows} ctx_rows of {stage.row_chunks} chunks have no room for {chunks * self.packs} chunks: raise "
                "ctx_rows or row_chunks of the stage."
            )
        if chunks < contexts * self.least:
            raise UserError(
                f"{contexts} documents need {contexts * self.least} chunks or more, a pack of the stage has room for "
                f"{chunks}: raise chunks."
            )

    def __getitem__(self, index: int) -> Batch:
        rng = np.random.default_rng((self.seed, index))
        return stack_groups([self._pack(rng) for _ in range(self.packs)], self.accumulate)

    def _pack(self, rng: np.random.Generator) -> Batch:
        for _ in range(MOST_DRAWS):
            packer = Packer(self.shapes, self.tokenizer.pad_id)
            if all(packer.add(example) for example in self._draw(rng)):
                return packer.finish()[0]
        raise UserError(
            f"{MOST_DRAWS} draws of {self.shapes.contexts} documents found no room in {self.shapes.ctx_rows} rows of "
            f"{self.shapes.ctx_tokens} tokens: raise ctx_rows of the stage."
        )

    def _draw(self, rng: np.random.Generator) -> list[Example]:
        """The documents of a pack, cut into as many chunks as there is room for."""
        stage, tokenizer, shapes = self.stage, self.tokenizer, self.shapes
        documents, needles, needed = [], [], []
        for place in range(shapes.contexts):
            # A document may be as long as leaves room for the shortest ones after it.
            room = shapes.chunks - sum(needed) - self.least * (shapes.contexts - 1 - place)
            longest = min(self.longest, room * stage.max_chunk_len)
            needles.append(make_needle(rng, tokenizer, stage.min_tokens, longest))
            documents.append(tokenizer.encode(needles[-1].document))
            needed.append(-(-len(documents[-1]) // stage.max_chunk_len))
        spare = shapes.chunks - sum(needed)
        probs = collections.Counter(stage.chunk_counts) or CHUNK_PROBS
        examples = []
        for needle, ids, least in zip(needles, documents, needed, strict=True):
            most = min(stage.max_chunks, least + spare)
            count = draw_num_chunks(rng, len(ids), stage.min_chunk_len, stage.max_chunk_len, most, probs)
            spare -= count - least
            queries = [(needle.question, needle.answer)]
            examples.append(make_example(split_into(ids, count), queries, tokenizer, teacher=stage.teacher))
        return examples

    def iterate(self, start: int, stop: int) -> Iterator[Any]:
        """Batches start..stop-1 through grain, built ahead by a thread."""
        data = grain.MapDataset.range(start, stop).map(self.__getitem__)
        return iter(data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))
