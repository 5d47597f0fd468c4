"""Context distillation: a LoRA of its own for every document, trained for minutes (SPEC 1)."""

from collections.abc import Sequence
from typing import Any

from d2l.errors import UserError
from d2l.experiments.baselines.face import Memory, Method, Prompt
from d2l.experiments.baselines.in_context import cut_middle, joined, room
from d2l.experiments.baselines.lora import Lesson, LoraTrainer, LoraTraining
from d2l.experiments.baselines.questions import ASK, QUESTION_TOKENS, ask_questions
from d2l.model import DocToLora
from d2l.target.prefix import Branch, PrefixGenerator
from d2l.train.losses import TEACHER_TOP_K


def teach(
    model: DocToLora, reader: PrefixGenerator, document: list[int], queries: Sequence[str], max_new_tokens: int
) -> tuple[list[Lesson], int]:
    """What the target answers to the queries with the document in its prompt, and how many tokens it did not see."""
    tokenizer = model.tokenizer
    prefix, suffix = tokenizer.turn_wrapper
    longest = max(queries, key=lambda query: len(tokenizer.encode(query)))
    kept, cut = cut_middle(document, room(model, longest, max_new_tokens))
    read = reader.read([[*prefix, *kept]])
    branches = [Branch(0, [*tokenizer.encode("\n\n"), *tokenizer.encode(query), *suffix]) for query in queries]
    found = reader.generate_after(read, branches, max_new_tokens=max_new_tokens, stop_ids=tokenizer.eos_ids)
    # An answer that was cut short has no end.
    ended = [ids if len(ids) == max_new_tokens else [*ids, tokenizer.eos_ids[0]] for ids in found]
    tops = reader.top_k_after(read, branches, ended, TEACHER_TOP_K)
    lessons = [
        Lesson(tokenizer.user_turn(query), response, top)
        for query, response, top in zip(queries, ended, tops, strict=True)
    ]
    return lessons, cut


def cd_oracle(model: DocToLora, max_new_tokens: int, **training) -> Method:
    """Distilled on the very queries that are asked afterwards: the most that distillation can give.

    Args:
      training: fields of `LoraTraining`.
    """
    return _method(model, max_new_tokens, training)


def cd_generated(model: DocToLora, max_new_tokens: int, *, questions: int = 20, **training) -> Method:
    """Distilled on queries that the target asks itself about the document.

    Args:
      questions: how many.
      training: fields of `LoraTraining`.
    """
    if questions < 1:
        raise UserError(f"questions is {questions}: give 1 or more.")
    return _method(model, max_new_tokens, training, questions)


def _method(model: DocToLora, max_new_tokens: int, training: dict[str, Any], questions: int = 0) -> Method:
    trainer = LoraTrainer(model, LoraTraining(**training))
    reader = PrefixGenerator(model.target.config, model.generator.params)

    def learn(documents: Sequence[str], queries: Sequence[str], steps: int | None) -> Memory:
        document = model.tokenizer.encode(joined(documents))
        if questions:
            seen, _ = cut_middle(document, room(model, ASK, QUESTION_TOKENS))
            queries = ask_questions(model, reader, seen, questions, trainer.training.seed)
        lessons, cut = teach(model, reader, document, queries, max_new_tokens)
        adapter, _ = trainer.train(lessons, steps=steps)
        return Memory(lambda query: Prompt(model.tokenizer.user_turn(query), cut), adapter=adapter)

    def remember(documents: Sequence[str], queries: Sequence[str]) -> Memory:
        return learn(documents, queries, None)

    def rehearse(documents: Sequence[str], queries: Sequence[str]) -> Memory:
        return learn(documents, queries, 1)

    return Method(model, max_new_tokens, remember, rehearse, adapts=True)
