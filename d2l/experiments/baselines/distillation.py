"""Context distillation: a LoRA of its own for every document, trained for minutes (SPEC 1)."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from d2l.data.selfgen.chat import Chat
from d2l.data.selfgen.config import SelfgenConfig
from d2l.data.selfgen.questions import PAIR_TOKENS, ask_questions, longest_prompt
from d2l.errors import UserError
from d2l.experiments.baselines.face import Memory, Method, Prompt
from d2l.experiments.baselines.in_context import cut_middle, joined
from d2l.experiments.baselines.lora import Lesson, LoraTrainer, LoraTraining
from d2l.model import DocToLora
from d2l.target.prefix import Prefixes
from d2l.train.losses import TEACHER_TOP_K

# Temperatures at which questions are asked again where replies held none, as small models' greedy ones on short pages.
RETRIES = (0.5, 0.7, 1.0, 1.0, 1.0)


def teach(chat: Chat, read: Prefixes, queries: Sequence[str], max_new_tokens: int) -> list[Lesson]:
    """What the target answers to the queries about a document that it has read."""
    replies = chat.reply(read, [(0, query) for query in queries], max_new_tokens, 0.0, 0, top_k=TEACHER_TOP_K)
    return [
        Lesson(chat.tokenizer.user_turn(query), reply.ids, reply.best)
        for query, reply in zip(queries, replies, strict=True)
    ]


def cd_oracle(model: DocToLora, max_new_tokens: int, **training) -> Method:
    """Distilled on the very queries that are asked afterwards: the most that distillation can give.

    Args:
      training: fields of `LoraTraining`.
    """
    return _method(model, max_new_tokens, training)


def cd_generated(model: DocToLora, max_new_tokens: int, *, questions: int = 20, **training) -> Method:
    """Distilled on queries that the target asks itself about the document; where it finds none, it is asked again.

    Args:
      questions: how many.
      training: fields of `LoraTraining`.
    """
    if questions < 1:
        raise UserError(f"questions is {questions}: give 1 or more.")
    return _method(model, max_new_tokens, training, questions)


def _ask(chat: Chat, read: Prefixes, text: str, config: SelfgenConfig, rng: np.random.Generator) -> list[str]:
    """Questions of the target about a text that it has read, one or more."""
    for temperature in (config.question_temperature, *RETRIES):
        config = dataclasses.replace(config, question_temperature=temperature)
        (queries,), _ = ask_questions(chat, read, [text], config, rng, collections.Counter())
        if queries:
            return queries
    raise UserError(
        f"the target was asked for questions about the document {1 + len(RETRIES)} times and gave none that is "
        "well-formed: distil on questions of your own (cd_oracle)."
    )


def _method(model: DocToLora, max_new_tokens: int, training: dict[str, Any], questions: int = 0) -> Method:
    trainer = LoraTrainer(model, LoraTraining(**training))
    config = SelfgenConfig(per_round=max(1, -(-questions // 2)))
    chat = Chat(model.target, config.batch_tokens)
    asking = (longest_prompt(config), PAIR_TOKENS)

    def learn(documents: Sequence[str], queries: Sequence[str], steps: int | None) -> Memory:
        prompts = [asking] if questions else [(query, max_new_tokens) for query in queries]
        if (space := min(chat.room(*prompt) for prompt in prompts)) < 1:
            raise UserError(f"the window of {model.target.name} has no room for a document beside the questions.")
        kept, cut = cut_middle(model.tokenizer.encode(joined(documents)), space)
        text = model.tokenizer.decode(kept)
        read = chat.read([text])
        if questions:
            rng = np.random.default_rng(trainer.training.seed)
            queries = _ask(chat, read, text, config, rng)
        adapter, _ = trainer.train(teach(chat, read, queries[: questions or None], max_new_tokens), steps=steps)
        return Memory(lambda query: Prompt(model.tokenizer.user_turn(query), cut), adapter=adapter)

    def remember(documents: Sequence[str], queries: Sequence[str]) -> Memory:
        return learn(documents, queries, None)

    def rehearse(documents: Sequence[str], queries: Sequence[str]) -> Memory:
        return learn(documents, queries, 1)

    return Method(model, max_new_tokens, remember, rehearse, adapts=True)
