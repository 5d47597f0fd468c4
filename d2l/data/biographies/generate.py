"""Synthetic biographies: pages about people who do not exist, with questions whose answers stand on the page alone.

A page has a paragraph per person. Facts are shuffled and paraphrased; some questions take two steps (over a person's
spouse, mentor, employer or birthplace), and some pages contradict common knowledge. A page is a pure function of
(split, seed, index). No two pages of a seed and split are about the same person, and splits share no name, town,
company, phrasing of a fact or of a question, nor contradicted knowledge.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from d2l.data.biographies.knowledge import TOPICS
from d2l.data.biographies.lives import draw_lives
from d2l.data.biographies.names import SPLITS, draw_people, num_people, person_at, share
from d2l.data.biographies.paragraph import Statement, make_paragraph, pick
from d2l.data.biographies.questions import make_queries
from d2l.data.record import Query, Record, check_answers
from d2l.errors import UserError
from d2l.target.tokenizer import Tokenizer

SOURCE = "biographies"
# Tokens that a page gives to each of its people, drawn between these; all that is known of one takes about 500.
TOKENS_A_PERSON = (60, 350)
MOST_PEOPLE = 24


def biography_at(
    split: str,
    seed: int,
    index: int,
    tokenizer: Tokenizer,
    min_tokens: int,
    max_tokens: int,
    *,
    answers: str = "value",
) -> Record:
    """Page `index` of a split and seed, with all its questions in random order.

    Its length in tokens is about uniform in [min_tokens, max_tokens] and never above it. Lengths vary by whole
    sentences: a page below `min_tokens` comes out only where no further sentence fits the range.

    Queries have the kinds `fact`, `who` (asks for the person), `multi_hop` and `contradiction`.

    Args:
      answers: how they are put, as in `make_queries`.

    Raises:
      UserError: an unknown split or form of answers, an index beyond the split's people, or a range that no page fits.
    """
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}: give one of {', '.join(SPLITS)}.")
    if not 0 <= index < num_people(split):
        raise UserError(f"there is no biography {index} in {split}: give an index from 0 to {num_people(split) - 1}.")
    check_answers(answers)
    if not 0 <= min_tokens <= max_tokens:
        raise UserError(f"no biography has {min_tokens} to {max_tokens} tokens: give a range like 64-256.")
    rng = np.random.default_rng((SPLITS.index(split), seed, index))
    wanted = int(rng.integers(min_tokens, max_tokens, endpoint=True))
    count = min(MOST_PEOPLE, int(np.ceil(wanted / rng.integers(*TOKENS_A_PERSON))) or 1)
    lives = draw_lives(rng, split, draw_people(rng, split, count, person_at(split, seed, index)))
    page = _Page([make_paragraph(rng, split, lives, number) for number in range(count)], tokenizer)
    page.fill(wanted, min_tokens, max_tokens)
    queries = make_queries(rng, split, lives, page.statements(), answers=answers)
    order = rng.permutation(len(queries))
    return Record(f"{seed}-{index}", page.text(), tuple(queries[i] for i in order), SOURCE, split)


def biographies(
    split: str,
    seed: int,
    count: int,
    tokenizer: Tokenizer,
    min_tokens: int,
    max_tokens: int,
    *,
    answers: str = "value",
) -> Iterator[Record]:
    """The first `count` pages of a split and seed."""
    for index in range(count):
        yield biography_at(split, seed, index, tokenizer, min_tokens, max_tokens, answers=answers)


def unrelated(
    split: str,
    seed: int,
    tokenizer: Tokenizer,
    min_tokens: int,
    max_tokens: int,
    *,
    queries: int = 2,
    answers: str = "value",
) -> Iterator[Record]:
    """Pages as those of `biography_at`, each with questions of the kind `knowledge` that it has nothing to do with.

    They ask for common knowledge, which is true here and of this split's pairs. Pages that contradict any are left out.

    Args:
      queries: questions about a page.
      answers: `value`, or `spaced`.

    Raises:
      UserError: another form of answers, and as `biography_at`.
    """
    if answers not in ("value", "spaced"):
        raise UserError(f"answers are {answers!r}: common knowledge is told as value or spaced.")
    for index in itertools.count():
        page = biography_at(split, seed, index, tokenizer, min_tokens, max_tokens)
        if any(query.kind == "contradiction" for query in page.queries):
            continue
        rng = np.random.default_rng((SPLITS.index(split), seed, index, 1))
        pairs = [(topic, *pair) for topic in TOPICS for pair in share(topic.pairs, split)]
        asked = []
        for i in rng.permutation(len(pairs))[:queries]:
            topic, key, value = pairs[i]
            question = pick(rng, topic.questions, split).format(k=key)
            asked.append(Query(question, (f" {value}" if answers == "spaced" else value,), "knowledge"))
        yield Record(page.id, page.context, tuple(asked), "unrelated", split)


class _Page:
    """Which statements of the paragraphs stand on the page."""

    def __init__(self, paragraphs: list[list[Statement]], tokenizer: Tokenizer):
        self.paragraphs, self.tokenizer = paragraphs, tokenizer
        self.chosen: set[tuple[int, int]] = set()

    def statements(self) -> list[Statement]:
        return [self.paragraphs[p][i] for p, i in sorted(self.chosen)]

    def text(self) -> str:
        paragraphs = (
            " ".join(statement.text for i, statement in enumerate(statements) if (p, i) in self.chosen)
            for p, statements in enumerate(self.paragraphs)
        )
        return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)

    def length(self) -> int:
        return len(self.tokenizer.encode(self.text()))

    def fill(self, wanted: int, low: int, high: int) -> None:
        """Choose statements, each person's first ones first, until the page is about `wanted` tokens long."""
        places = [
            (p, i)
            for i in range(max(map(len, self.paragraphs)))
            for p, statements in enumerate(self.paragraphs)
            if i < len(statements)
        ]
        costs = [len(self.tokenizer.encode(" " + self.paragraphs[p][i].text)) for p, i in places]
        count = int(np.searchsorted(np.cumsum(costs), wanted, side="right"))
        self.chosen = set(places[:count])
        # Costs were of single sentences; a tokenizer may merge across, so the page itself is measured.
        while count and self.length() > high:
            count -= 1
            self.chosen.discard(places[count])
        for place in itertools.islice(places, count, None):
            if self.length() >= low and self.chosen:
                break
            # A paragraph opens with its person's name: nothing stands in it before that.
            if place[1] == 0 or (place[0], 0) in self.chosen:
                self.chosen.add(place)
                if self.length() > high:
                    self.chosen.discard(place)
        if not self.chosen or (len(self.chosen) == len(places) and self.length() < low):
            least, most = min(costs), self.length()
            fits = f"starts below {most}" if self.chosen else f"ends above {least}"
            raise UserError(f"no biography here has {low} to {high} tokens: give a range that {fits}.")
