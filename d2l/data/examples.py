"""Records as examples: cut, tokenised, with the teacher's stored answer where there is one."""

import dataclasses

import numpy as np

from d2l.data.batch import make_example
from d2l.data.chunk import draw_num_chunks
from d2l.data.pack import Example
from d2l.data.pack import Query as Asked
from d2l.data.record import Record, Teacher
from d2l.errors import UserError
from d2l.hypernet.chunk import split_into, split_sentences
from d2l.target.tokenizer import Tokenizer

NEVER = -1e9  # log-probability; times its probability of 0 it is 0


@dataclasses.dataclass(frozen=True)
class ExampleMaker:
    """Makes the example of a record at a position of the order, a pure function of both and the seed.

    Attributes:
      min_chunk_len, max_chunk_len, max_chunks: how documents are cut (`draw_num_chunks`).
      chunk_at: `sentences` to cut where these end (`split_sentences`), unless that makes more than `max_chunks`.
      stored_teacher: of so many tokens; train on the answers and log-probabilities that the records store, 0: on the
        first reference.
      references: where a query stores no teacher, its first reference is one that is sure of each token.
      teacher_prompts: make the prompts from which the step computes the teacher, on the answers that it gave itself
        where the records store them.
    """

    tokenizer: Tokenizer
    seed: int
    max_chunk_len: int
    max_chunks: int
    min_chunk_len: int = 1
    chunk_at: str = "tokens"
    stored_teacher: int = 0
    references: bool = False
    teacher_prompts: bool = False

    def __call__(self, position: int, record: Record) -> Example:
        """The example; queries without an answer are left out.

        Raises:
          UserError: the document is empty, or none of its queries can be trained on.
        """
        where = f"record {record.id!r} of {record.source} ({record.split})"
        ids, starts = self.tokenizer.encode_sentences(record.context)
        told = self.references or not self.stored_teacher
        queries = [q for q in record.queries if (told and q.answers) or (self.stored_teacher and q.teacher is not None)]
        if not ids or not queries:
            what = "an empty document" if not ids else f"no query with {'an answer' if told else 'a teacher'}"
            raise UserError(f"{where} has {what}: leave it out of what is trained on.")
        rng = np.random.default_rng((self.seed, position))
        count = draw_num_chunks(rng, len(ids), self.min_chunk_len, self.max_chunk_len, self.max_chunks)
        chunks = split_sentences(ids, starts, self.max_chunk_len, count) if self.chunk_at == "sentences" else []
        if not 0 < len(chunks) <= self.max_chunks:
            chunks = split_into(ids, count)
        asked = [(q.question, q.answers[0] if q.answers else "") for q in queries]
        example = make_example(
            chunks, asked, self.tokenizer, starts=[q.start for q in queries], teacher=self.teacher_prompts
        )
        taught = [self._taught(made, query.teacher) for made, query in zip(example.queries, queries, strict=True)]
        return dataclasses.replace(example, queries=taught)

    def _taught(self, made: Asked, teacher: Teacher | None) -> Asked:
        """The query with what the teacher said, and with its probabilities where these are wanted."""
        if teacher is not None and (self.stored_teacher or self.teacher_prompts):
            stored = (teacher.tokens, teacher.logp) if self.stored_teacher else None
            return dataclasses.replace(made, response=teacher.response.tolist(), teacher=stored)
        if not self.stored_teacher:
            return made
        tokens = np.zeros((len(made.response), self.stored_teacher), np.int32)
        logp = np.full(tokens.shape, NEVER, np.float32)
        tokens[:, 0], logp[:, 0] = made.response, 0.0
        return dataclasses.replace(made, teacher=(tokens, logp))
