"""The documents in the prompt, or nothing at all: what the target knows with and without them."""

from collections.abc import Sequence

from d2l.errors import UserError
from d2l.experiments.baselines.face import Memory, Method, Prompt
from d2l.model import DocToLora


def joined(documents: Sequence[str]) -> str:
    """Several documents as one text."""
    return "\n\n".join(documents)


def room(model: DocToLora, query: str, max_new_tokens: int) -> int:
    """Tokens of documents that the target's window holds beside a question and its answer.

    Raises:
      UserError: the question alone fills the window.
    """
    window = model.target.config.max_position_embeddings
    left = window - len(model.tokenizer.document_turn("", query)) - max_new_tokens
    if left < 1:
        raise UserError(
            f"the question fills the window of {model.target.name}, {window} tokens with {max_new_tokens} to generate: "
            "shorten it."
        )
    return left


def cut_middle(ids: list[int], room: int) -> tuple[list[int], int]:
    """At most `room` ids, from the start and the end in equal parts, and how many were cut out between."""
    if len(ids) <= room:
        return ids, 0
    tail = room // 2
    return ids[: room - tail] + ids[len(ids) - tail :], len(ids) - room


def document_prompt(model: DocToLora, document: list[int], query: str, max_new_tokens: int) -> Prompt:
    """Document and question in one user turn, the document's middle cut out where the window does not hold it."""
    tokenizer = model.tokenizer
    kept, cut = cut_middle(document, room(model, query, max_new_tokens))
    prefix, suffix = tokenizer.turn_wrapper
    return Prompt([*prefix, *kept, *tokenizer.encode("\n\n"), *tokenizer.encode(query), *suffix], cut)


def in_context(model: DocToLora, max_new_tokens: int) -> Method:
    """The documents stand in every prompt."""

    def remember(documents: Sequence[str], queries: Sequence[str]) -> Memory:
        ids = model.tokenizer.encode(joined(documents))
        return Memory(lambda query: document_prompt(model, ids, query, max_new_tokens))

    return Method(model, max_new_tokens, remember)


def no_context(model: DocToLora, max_new_tokens: int) -> Method:
    """The questions alone."""

    def remember(documents: Sequence[str], queries: Sequence[str]) -> Memory:
        return Memory(lambda query: Prompt(model.tokenizer.user_turn(query)))

    return Method(model, max_new_tokens, remember)
