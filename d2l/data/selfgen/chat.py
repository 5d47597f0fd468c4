"""A model that is asked about documents, each of which it reads once."""

from collections.abc import Sequence

from d2l.errors import UserError
from d2l.target.generate import Sampling
from d2l.target.prefix import Branch, Continuation, Prefixes, PrefixGenerator
from d2l.target.weights import LoadedTarget

SEPARATOR = "\n\n"  # between document and question, as in `Tokenizer.document_turn`


class Chat:
    """A target with a tokenizer; its prompts are those of `Tokenizer.document_turn`.

    Args:
      batch_tokens: positions of the KV cache that a batch takes, at most.

    Raises:
      UserError: the model has no tokenizer.
    """

    def __init__(self, model: LoadedTarget, batch_tokens: int):
        if model.tokenizer is None:
            raise UserError(f"{model.name} has no tokenizer.json: add it to the folder.")
        self.tokenizer, self.window = model.tokenizer, model.config.max_position_embeddings
        self.generator = PrefixGenerator(model.config, model.params)
        self._batch_tokens = batch_tokens
        self._prefix, suffix = self.tokenizer.turn_wrapper
        self._separator = self.tokenizer.encode(SEPARATOR)
        self._suffix = suffix

    def room(self, question: str, max_new_tokens: int) -> int:
        """Tokens that the window has for a document beside a question and its answer."""
        return self.window - len(self._prefix) - len(self._separator) - len(self.ids(question)) - max_new_tokens

    def groups(self, documents: Sequence[str]) -> list[list[int]]:
        """Indices of documents of about the same length that are read together."""
        lengths = [len(self.tokenizer.encode(text)) for text in documents]
        order = sorted(range(len(documents)), key=lambda i: -lengths[i])
        groups = []
        while order:
            most = self._most(lengths[order[0]])
            groups.append(order[:most])
            order = order[most:]
        return groups

    def read(self, documents: Sequence[str]) -> Prefixes:
        """Read documents; `documents[i]` is prefix i."""
        return self.generator.read([[*self._prefix, *self.tokenizer.encode(d), *self._separator] for d in documents])

    def ids(self, question: str) -> list[int]:
        """What stands after document and separator."""
        return [*self.tokenizer.encode(question), *self._suffix]

    def reply(
        self,
        prefixes: Prefixes,
        asked: Sequence[tuple[int, str]],
        max_new_tokens: int,
        temperature: float,
        seed: int,
        *,
        starts: Sequence[str] | None = None,
        top_k: int = 0,
    ) -> list[Continuation]:
        """The reply to each (document, question).

        Args:
          starts: how each reply begins, not among the ids; None: however it does.
          top_k: likeliest tokens to keep at each token of a reply.
        """
        starts = [""] * len(asked) if starts is None else starts
        branches = [
            Branch(document, [*self.ids(question), *self.tokenizer.encode(start)])
            for (document, question), start in zip(asked, starts, strict=True)
        ]
        if not branches:
            return []
        longest = int(prefixes.lengths.max()) + max(len(branch.ids) for branch in branches)
        return self.generator.generate_after(
            prefixes,
            branches,
            max_new_tokens=max_new_tokens,
            stop_ids=self.tokenizer.eos_ids,
            sampling=Sampling(temperature, seed=seed),
            rows=self._most(longest + max_new_tokens),
            top_k=top_k,
        )

    def _most(self, tokens: int) -> int:
        """How many rows of so many tokens go together: a power of two, for few shapes to compile for."""
        return 1 << max(1, self._batch_tokens // tokens).bit_length() - 1
