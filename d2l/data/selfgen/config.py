"""What self-generation is told."""

import dataclasses

from d2l.errors import UserError

QUESTIONS = ("generate", "keep")
UNFINISHED = ("drop", "keep")


def check_closed_qa(share: float) -> None:
    """Raise a `UserError` where `share` is none."""
    if not 0 <= share <= 1:
        raise UserError(f"closed_qa is {share}: give a share in [0, 1].")


@dataclasses.dataclass(frozen=True)
class SelfgenConfig:
    """Options of `d2l selfgen`; defaults are those of the paper's main data where it has any.

    Attributes:
      questions: `generate` them, or `keep` those that the records have.
      per_round: questions that are asked for in each of two rounds.
      passage_tokens: documents are cut to passages of at most so many tokens, where questions are generated.
      question_temperature, temperature: of questions and of answers; 0 is greedy.
      max_new_tokens: the longest answer.
      unfinished: `drop` answers that would be longer, or `keep` what there is of them, without an end.
      top_k: likeliest tokens stored for each token of an answer.
      closed_qa: share of the questions that end in a line which asks for a short answer out of the text.
      limit: documents or passages to use, drawn without repetition; None: all.
      seed: of all draws.
      part_size: documents or passages that are finished, and written, together.
      batch_tokens: positions of the KV cache that a batch takes, at most.
    """

    questions: str = "generate"
    per_round: int = 5
    passage_tokens: int = 512
    question_temperature: float = 0.0
    temperature: float = 0.0
    max_new_tokens: int = 96
    unfinished: str = "drop"
    top_k: int = 16
    closed_qa: float = 0.3
    limit: int | None = None
    seed: int = 0
    part_size: int = 32
    batch_tokens: int = 16384

    def __post_init__(self):
        if self.questions not in QUESTIONS:
            raise UserError(f"questions is {self.questions!r}: give one of {', '.join(QUESTIONS)}.")
        if self.unfinished not in UNFINISHED:
            raise UserError(f"unfinished is {self.unfinished!r}: give one of {', '.join(UNFINISHED)}.")
        counts = ("per_round", "passage_tokens", "max_new_tokens", "top_k", "limit", "part_size", "batch_tokens")
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: give 1 or more.")
        for name in ("question_temperature", "temperature"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}: give 0 (greedy) or more.")
        check_closed_qa(self.closed_qa)
