"""All methods by name, and one made from what a config says of it."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from d2l.errors import UserError
from d2l.experiments.baselines import (
    distillation,
    doc_to_lora,
    embedding,
    generative_adapter,
    in_context,
    kv_compaction,
    llmlingua,
    retrieval,
    text_to_lora,
)
from d2l.experiments.baselines.face import Method
from d2l.experiments.baselines.lora import LoraTraining
from d2l.model import DocToLora

METHODS: dict[str, Callable[..., Method]] = {
    "in_context": in_context.in_context,
    "no_context": in_context.no_context,
    "d2l": doc_to_lora.d2l,
    "cd_oracle": distillation.cd_oracle,
    "cd_generated": distillation.cd_generated,
    "bm25": retrieval.bm25,
    "embedding": embedding.embedding,
    "llmlingua2": llmlingua.llmlingua2,
    "kv_compaction": kv_compaction.kv_compaction,
    "text_to_lora": text_to_lora.text_to_lora,
    "generative_adapter": generative_adapter.generative_adapter,
}


def check_method(name: str, options: dict[str, Any]) -> None:
    """Refuse a method or an option that does not exist.

    Raises:
      UserError: the sentence lists the known ones.
    """
    if name not in METHODS:
        raise UserError(f"there is no method {name!r}: give some of {', '.join(METHODS)}.")
    known = []
    for parameter in inspect.signature(METHODS[name]).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            known += [field.name for field in dataclasses.fields(LoraTraining)]
        elif parameter.kind is parameter.KEYWORD_ONLY:
            known.append(parameter.name)
    if unknown := [key for key in options if key not in known]:
        given = f"give some of {', '.join(known)}" if known else "it has none"
        raise UserError(f"the method {name} has no option {unknown[0]!r}: {given}.")


def make_method(model: DocToLora, name: str, max_new_tokens: int, options: dict[str, Any]) -> Method:
    """A method of the table.

    Raises:
      UserError: unknown name or option, or a value that it refuses.
      NotRun: it needs weights or a package that are not here.
    """
    check_method(name, options)
    return METHODS[name](model, max_new_tokens, **options)
