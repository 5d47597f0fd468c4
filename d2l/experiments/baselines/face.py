"""The one face of every method: documents first, then questions about them, `answer(documents, queries) -> answers`.

A method turns documents into a `Memory` before a question is known (the update), and the target answers from that:
through a prompt, under an adapter or after a KV cache. All methods answer by the same code.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax

from d2l.adapter import Adapter
from d2l.errors import UserError
from d2l.experiments.baselines.kv_cache import KVCache
from d2l.experiments.costs import Cost, measure
from d2l.model import DocToLora
from d2l.target.generate import bucket


class NotRun(UserError):
    """A method needs weights or a package that are not here; the report says so in its place."""


class Prompt(NamedTuple):
    """Token ids of a prompt, and how many tokens of the documents were cut out because no window holds them."""

    ids: list[int]
    cut: int = 0


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a method keeps of documents.

    Attributes:
      prompt: the prompt of a question; what stands in it is read with the question.
      adapter: of one context, or None.
      cache: read before the prompt, or None.
    """

    prompt: Callable[[str], Prompt]
    adapter: Adapter | None = None
    cache: KVCache | None = None

    def scaled(self, factor: float) -> "Memory":
        """The same memory with its adapter `factor` times as strong."""
        return dataclasses.replace(self, adapter=self.adapter.scaled(factor))

    def begun(self, start: list[int]) -> "Memory":
        """The same memory with token ids after each prompt: how the reply begins."""
        return dataclasses.replace(self, prompt=lambda query: _longer(self.prompt(query), start))


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer and what it cost.

    Attributes:
      tokens: ids, without the end token.
      update: of turning the documents into a memory, the same for every question about them.
      answer: from the question to the end of the answer.
      first_token_seconds: from the question to the first token of the answer.
      adapter_bytes, kv_bytes: what is kept to answer: the adapter, and the KV cache up to the end of the prompt.
      prompt_tokens, cut_tokens: tokens of the prompt, and tokens of the documents left out of it.
    """

    text: str
    tokens: list[int]
    update: Cost
    answer: Cost
    first_token_seconds: float
    adapter_bytes: int
    kv_bytes: int
    prompt_tokens: int
    cut_tokens: int


def _longer(prompt: Prompt, start: list[int]) -> Prompt:
    return prompt._replace(ids=[*prompt.ids, *start])


Remember = Callable[[Sequence[str], Sequence[str]], Memory]


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to answer questions about documents.

    Attributes:
      remember: `(documents, queries) -> memory`, all documents known together; only a method that is told the
        questions ahead (an oracle) looks at them.
      rehearse: compiles what `remember` needs, where that takes minutes; None calls `remember` itself.
      adapts: its memories have an adapter.
    """

    model: DocToLora
    max_new_tokens: int
    remember: Remember
    rehearse: Callable[[Sequence[str], Sequence[str]], object] | None = None
    adapts: bool = False

    def answer(self, documents: Sequence[str], queries: Sequence[str]) -> list[Answer]:
        """Answer every query about the documents, one at a time, greedily.

        Raises:
          UserError: no document, an empty text, or what the method itself refuses.
        """
        memory, update = self.update(documents, queries)
        return [self.recall(memory, update, query) for query in queries]

    def update(self, documents: Sequence[str], queries: Sequence[str]) -> tuple[Memory, Cost]:
        """The memory of documents and the cost of making it."""
        if not documents or not all(text.strip() for text in documents):
            raise UserError("a document is empty or there is none: give texts with words in them.")

        def remember() -> Memory:
            memory = self.remember(documents, queries)
            jax.block_until_ready((memory.adapter, memory.cache and memory.cache.layers))
            return memory

        return measure(remember, self.rehearse and functools.partial(self.rehearse, documents, queries))

    def recall(self, memory: Memory, update: Cost, query: str) -> Answer:
        """One answer from a memory that cost `update`."""
        if not query.strip():
            raise UserError("the question is empty: give a text with words in it.")
        before = 0 if memory.cache is None else memory.cache.length

        def generate() -> tuple[Prompt, list[int], float]:
            began = time.perf_counter()
            prompt, tokens, first = memory.prompt(query), [], None
            self._check(len(prompt.ids) + before)
            for token in _stream(self.model, memory, prompt.ids, self.max_new_tokens):
                first = time.perf_counter() - began if first is None else first
                tokens.append(token)
            return prompt, tokens, time.perf_counter() - began if first is None else first

        (prompt, tokens, first), cost = measure(generate)
        return Answer(
            self.model.tokenizer.decode(tokens).strip(),
            tokens,
            update,
            cost,
            first,
            0 if memory.adapter is None else memory.adapter.nbytes,
            self.model.generator.cache_nbytes(before + len(prompt.ids)),
            len(prompt.ids),
            prompt.cut,
        )

    def _check(self, prompt_tokens: int) -> None:
        window = self.model.target.config.max_position_embeddings
        if prompt_tokens + self.max_new_tokens > window:
            raise UserError(
                f"a prompt has {prompt_tokens} tokens and {self.max_new_tokens} are to be generated, the window of "
                f"{self.model.target.name} is {window}: shorten the questions."
            )


def _stream(model: DocToLora, memory: Memory, ids: list[int], max_new_tokens: int) -> Iterator[int]:
    """Greedy tokens after a prompt."""
    generator, stop_ids = model.generator, model.tokenizer.eos_ids
    factors = None if memory.adapter is None else memory.adapter.for_decoder(generator.dtype)
    if memory.cache is None:
        tokens = generator.stream([ids], max_new_tokens=max_new_tokens, stop_ids=stop_ids, adapter=factors)
    else:
        layers = memory.cache.with_room(max(bucket(len(ids), 32), len(ids) + max_new_tokens))
        tokens = generator.stream_after(
            layers, memory.cache.length, ids, max_new_tokens=max_new_tokens, stop_ids=stop_ids
        )
    for _, token in tokens:
        yield token
