"""LLMLingua-2 (Pan et al., 2024): a token classifier drops the words of a document that say least.

The package `llmlingua` comes with the extra `llmlingua`; the compression does not see the question.
"""

from collections.abc import Sequence

from d2l.errors import UserError
from d2l.experiments.baselines.face import Memory, Method, NotRun
from d2l.experiments.baselines.in_context import document_prompt, joined
from d2l.model import DocToLora


def llmlingua2(
    model: DocToLora,
    max_new_tokens: int,
    *,
    weights: str = "microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank",
    rate: float = 0.2,
) -> Method:
    """The compressed document in the prompt.

    Args:
      weights: folder or hub name of the token classifier.
      rate: share of the tokens that stays.
    """
    if not 0 < rate <= 1:
        raise UserError(f"rate is {rate}: give a share in (0, 1].")
    try:
        import llmlingua
    except ImportError as error:
        raise NotRun("it needs the package llmlingua: pip install 'd2l[llmlingua]'.") from error
    try:
        compressor = llmlingua.PromptCompressor(weights, use_llmlingua2=True, device_map="cpu")
    except OSError as error:
        raise NotRun(f"the weights {weights} cannot be had: give the folder of a token classifier.") from error

    def remember(documents: Sequence[str], queries: Sequence[str]) -> Memory:
        out = compressor.compress_prompt([joined(documents)], rate=rate, force_tokens=["\n", ".", "?", "!"])
        ids = model.tokenizer.encode(out["compressed_prompt"])
        return Memory(lambda query: document_prompt(model, ids, query, max_new_tokens))

    return Method(model, max_new_tokens, remember)
