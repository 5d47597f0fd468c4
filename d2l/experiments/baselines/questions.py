"""Questions that the target asks itself about a document."""

from d2l.errors import UserError
from d2l.model import DocToLora
from d2l.target.generate import Sampling
from d2l.target.prefix import Branch, PrefixGenerator

ASK = "Write one question that the text above answers. Reply with only the question."
QUESTION_TOKENS = 40
ROUNDS = 4


def ask_questions(model: DocToLora, reader: PrefixGenerator, document: list[int], count: int, seed: int) -> list[str]:
    """At most `count` different questions, drawn at temperature 1 in at most `ROUNDS` rounds of `count` draws.

    Args:
      document: token ids, within the target's window.

    Raises:
      UserError: the target asked nothing at all.
    """
    tokenizer = model.tokenizer
    prefix, suffix = tokenizer.turn_wrapper
    read = reader.read([[*prefix, *document]])
    ask = Branch(0, [*tokenizer.encode("\n\n" + ASK), *suffix])
    found: dict[str, None] = {}
    for number in range(ROUNDS):
        drawn = reader.generate_after(
            read,
            [ask] * count,
            max_new_tokens=QUESTION_TOKENS,
            stop_ids=tokenizer.eos_ids,
            sampling=Sampling(temperature=1.0, seed=seed + number),
        )
        found |= dict.fromkeys(text for ids in drawn if (text := " ".join(tokenizer.decode(ids).split())))
        if len(found) >= count:
            break
    if not found:
        raise UserError(f"{model.target.name} asked no question about the document: distil on questions of your own.")
    return list(found)[:count]
