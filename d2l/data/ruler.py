"""The needle tasks of RULER (Hsieh et al., 2024), written from their description.

| task | haystack | key | value | keys | asked |
|---|---|---|---|---|---|
| single_1 | repeated noise | words | number | 1 | its value |
| single_2 | real text | words | number | 1 | its value |
| single_3 | real text | words | UUID | 1 | its value |
| multikey_1 | real text | words | number | 8 (4 in the paper) | the value of one |
| multikey_2 | other needles | words | number | all of them | the value of one |
| multikey_3 | other needles | UUID | UUID | all of them | the value of one |
| multivalue | real text | words | number | 1 | its four values |
| multiquery | real text | words | number | 4 | the values of all |

Words are those of the `wonderwords` package, as in RULER. Splits share no noun of a key and no text. Real text is the
language reference that every Python carries.
"""

import dataclasses
import functools
import itertools
import re
import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from d2l.data.background import sentences_of, surround
from d2l.data.niah import NOISE
from d2l.data.record import ANSWERS, Query, Record, check_answers
from d2l.data.split import draw
from d2l.errors import UserError
from d2l.target.tokenizer import Tokenizer

SPLITS = ("train", "validation", "test")
FORMS = (*ANSWERS, "joined", "quoted")
WORDS = ("ruler", "few", "vocabulary")
NEEDLE = "One of the special magic {}s for {} is: {}."
KINDS = {"numbers": "number", "uuids": "UUID"}
ADJECTIVES = (
    "able amber ancient angry arid bitter blunt bold brave brief bright brisk broad calm careful cheerful "
    "clever cloudy cold cosy crisp curious dark deep distant dry dusty eager early elegant empty faint fancy "
    "fast fierce firm flat fresh gentle giant glad golden grand grave green happy harsh heavy hidden hollow "
    "honest huge humble icy idle jolly keen kind large late lazy light little lively lonely long loud loyal "
    "lucky mellow mighty mild modern narrow neat noble odd old open pale patient plain polite proud quick quiet "
    "rapid rare rough round royal rusty salty sharp shiny short silent silver simple sleepy slow smooth soft "
    "solid sour square stable steep stern still strong sunny sweet swift tall tame tender thick thin tidy tiny "
    "tough vast velvet vivid warm weary wide wild wise witty wooden young"
).split()
NOUNS = (
    "acorn anchor apple arrow badger banjo barrel basket beacon beetle blanket boulder bridge bucket button "
    "cabin camel candle canyon carpet castle cellar chapel cherry circle clock cobbler comet copper cottage "
    "cradle crane cricket crystal curtain daisy desert dolphin dragon drum eagle ember engine falcon feather "
    "ferry fiddle forest fossil fountain garden garlic glacier goblet granite guitar hammer harbour harvest "
    "hazel helmet heron hollow honey island ivory jacket jaguar jungle kettle kitten ladder lantern lemon "
    "lizard lobster locket magnet mango maple marble meadow mirror monkey mountain needle nettle oasis ocean "
    "olive orchard otter oyster paddle palace panther parrot pebble pencil pepper piano pigeon pillow pirate "
    "planet pocket pony prairie pumpkin puzzle rabbit raven ribbon river rocket saddle salmon sandal saddlebag "
    "scarf shadow shovel siren sparrow spider spoon statue stone sunset table teapot temple thimble thistle "
    "thunder ticket tiger tower trumpet tulip tunnel turtle umbrella valley vessel village violin walnut walrus "
    "waterfall whistle willow window winter wizard zebra"
).split()


@dataclasses.dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
      haystack: `noise`, `text` or `needles`.
      keys, values: `words`, `numbers` or `uuids`.
      needles: keys with a value in the document, beside those of a haystack of needles.
      per_key: values of each key.
      asked: keys that the question names.
    """

    haystack: str
    keys: str = "words"
    values: str = "numbers"
    needles: int = 1
    per_key: int = 1
    asked: int = 1


class Lexicon(NamedTuple):
    """Words that keys of a document are made of."""

    adjectives: Sequence[str]
    nouns: Sequence[str]


TASKS = {
    "single_1": Task("noise"),
    "single_2": Task("text"),
    "single_3": Task("text", values="uuids"),
    "multikey_1": Task("text", needles=8),
    "multikey_2": Task("needles"),
    "multikey_3": Task("needles", keys="uuids", values="uuids"),
    "multivalue": Task("text", per_key=4),
    "multiquery": Task("text", needles=4, asked=4),
}


def ruler_at(
    task: str,
    split: str,
    seed: int,
    index: int,
    tokenizer: Tokenizer,
    min_tokens: int,
    max_tokens: int,
    *,
    needles: tuple[int, int] | None = None,
    queries: int = 1,
    answers: str = "value",
    short: bool = True,
    words: str = "ruler",
    begun: bool = False,
) -> Record:
    """Item `index` of a task, split and seed: a pure function of all arguments.

    Its length in tokens is about uniform in [min_tokens, max_tokens] and never above it; where the range starts below
    the needles' own length, they stand alone in some items. The answer to a question about several values names them
    with commas, in the order of the keys asked and of the document.

    Args:
      needles: at least and at most so many keys have a value, instead of the task's number; drawn uniformly.
      queries: most questions about a document, each about other keys. A task has one; training learns from more.
      answers: one of `FORMS`: the values alone, or `spaced`; a sentence that names the keys before them, as the
        answers do that RULER itself begins; such a sentence `joined`, without the space before the values, so that a
        value follows what names its key at once; the needles `quoted` as they stand in the document, without that space
        before a digit, where tokenizers make it a token of its own; or `continued` from the values on, its beginning
        being the query's `start`.
      short: end questions in a line that asks for the values alone.
      words: of keys, one of `WORDS`: RULER's own, 910 adjectives and, over all splits, 6,782 nouns; the `few` of
        `ADJECTIVES` and `NOUNS`, so that keys of a document share a noun more often: of eight one in three in the test
        split, where RULER's do once in a hundred; or any of the tokenizer's vocabulary but nouns of other splits, a
        few of them in each document, for training.
      begun: the reply is begun (`Query.start`), as by RULER's own prompts: with the document's sentence up to its
        value, or where several values are asked for with a sentence that names their keys.

    Raises:
      UserError: an unknown task, split, form of answers or kind of words, too few needles, or a range that cannot hold
        them.
    """
    if task not in TASKS:
        raise UserError(f"RULER has no task {task!r} here: give one of {', '.join(TASKS)}.")
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}: give one of {', '.join(SPLITS)}.")
    spec = TASKS[task]
    check_answers(answers, FORMS)
    if begun and answers != "value":
        raise UserError(f"a reply that is begun goes on with the value, answers are {answers!r}: give 'value'.")
    if words not in WORDS:
        raise UserError(f"words are {words!r}: give one of {', '.join(WORDS)}.")
    rng = np.random.default_rng((list(TASKS).index(task), SPLITS.index(split), seed, index))
    used: set[str] = set()
    low, high = needles or (spec.needles, spec.needles)
    if not spec.asked <= low <= high or queries < 1:
        raise UserError(
            f"{task} with {low} to {high} needles and {queries} questions: give at least {spec.asked} needles, the "
            "larger number last, and 1 question or more."
        )
    count = low if low == high else int(rng.integers(low, high, endpoint=True))
    if words == "vocabulary":
        lexicon = _few(rng, _vocabulary(tokenizer, split))
    else:
        both = _published() if words == "ruler" else Lexicon(ADJECTIVES, NOUNS)
        lexicon = both._replace(nouns=_part(both.nouns, split))
    keys = [_fresh(rng, spec.keys, lexicon, used) for _ in range(count)]
    values = {key: [_fresh(rng, spec.values, lexicon, used) for _ in range(spec.per_key)] for key in keys}
    kind = KINDS[spec.values]
    pairs = [(key, value) for key in keys for value in values[key]]
    told = [NEEDLE.format(kind, *pairs[i]) for i in rng.permutation(len(pairs))]
    document = surround(rng, told, _background(rng, spec, split, lexicon, used), tokenizer, min_tokens, max_tokens)
    questions = []
    for first in range(0, min(queries * spec.asked, count - spec.asked + 1), spec.asked):
        asked = keys[first : first + spec.asked]
        wanted = [(key, value) for key in asked for value in sorted(values[key], key=document.index)]
        listed = ", ".join(value for _, value in wanted)
        query = Query(_question(kind, asked, len(wanted), short), (listed,), task)
        if answers == "quoted":
            quotes = (re.sub(r": (?=\d)", ":", NEEDLE.format(kind, *pair)) for pair in wanted)
            query = query._replace(answers=(" ".join(quotes),))
        elif answers != "value":
            query = _told(query, kind, asked, len(wanted), answers)
        if begun and len(wanted) == 1:
            query = query._replace(start=NEEDLE.format(kind, asked[0], "").removesuffix(" ."))
        elif begun:
            query = query._replace(start=_told(query, kind, asked, len(wanted), "continued").start)
        questions.append(query)
    return Record(f"{task}-{seed}-{index}", document, tuple(questions), "ruler", split)


def _question(kind: str, asked: list[str], count: int, short: bool) -> str:
    if count == 1:
        instruction = f" Reply with only the {kind}." if short else ""
        return f"What is the special magic {kind} for {_listed(asked)}?{instruction}"
    instruction = f" Reply with only the {kind}s, separated by commas." if short else ""
    return f"What are all the special magic {kind}s for {_listed(asked)}?{instruction}"


def _told(query: Query, kind: str, asked: list[str], count: int, form: str) -> Query:
    """The query with its answer in a sentence."""
    verb = "is" if count == 1 else "are"
    start = f"The special magic {kind}{'s' * (count > 1)} for {_listed(asked)} {verb}:"
    values = f" {query.answers[0]}."
    if form == "spaced":
        return query._replace(answers=(values[:-1],))
    if form in ("sentence", "joined"):
        return query._replace(answers=(start + (values if form == "sentence" else values.lstrip()),))
    return query._replace(answers=(values,), start=start)


def _listed(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"


def _background(
    rng: np.random.Generator, spec: Task, split: str, lexicon: "Lexicon", used: set[str]
) -> Callable[[int], str]:
    """Sentence i of the haystack, endless."""
    if spec.haystack == "noise":
        return lambda i: NOISE[i % len(NOISE)]
    if spec.haystack == "text":
        text = python_reference(split)
        start = int(rng.integers(len(text)))
        return lambda i: text[(start + i) % len(text)]
    others: list[str] = []

    def other(i: int) -> str:
        while len(others) <= i:
            key, value = (_fresh(rng, kind, lexicon, used) for kind in (spec.keys, spec.values))
            others.append(NEEDLE.format(KINDS[spec.values], key, value))
        return others[i]

    return other


def _fresh(rng: np.random.Generator, kind: str, lexicon: "Lexicon", used: set[str]) -> str:
    """A key or value that this document has not yet; words grow longer where short ones run out."""
    for attempt in itertools.count():
        if kind == "words":
            adjectives, nouns = lexicon
            words = [adjectives[rng.integers(len(adjectives))] for _ in range(1 + attempt // 20)]
            found = "-".join((*words, nouns[rng.integers(len(nouns))]))
        elif kind == "numbers":
            found = str(rng.integers(1_000_000, 10_000_000))
        else:
            found = str(uuid.UUID(bytes=rng.bytes(16), version=4))
        if found not in used:
            break
    used.add(found)
    return found


def _few(rng: np.random.Generator, words: Sequence[str]) -> Lexicon:
    """Two to twelve words for each half of a key."""
    return Lexicon(*([words[i] for i in rng.integers(len(words), size=rng.integers(2, 13))] for _ in Lexicon._fields))


@functools.lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer, split: str) -> list[str]:
    """Words of a tokenizer's vocabulary that are no nouns of other splits."""
    others = {noun for nouns in (NOUNS, _published().nouns) for noun in set(nouns) - set(_part(nouns, split))}
    tokens = (tokenizer.decode([i]) for i in range(tokenizer.vocab_size))
    found = sorted({token[1:] for token in tokens if re.fullmatch(r" [a-z]{3,10}", token)} - others)
    if not found:
        raise UserError("the tokenizer has no tokens that are a space and a word: leave out --words.")
    return found


@functools.cache
def _published() -> Lexicon:
    """The words that RULER takes."""
    from wonderwords import RandomWord

    words = RandomWord()
    return Lexicon(*(words.filter(include_categories=[kind]) for kind in ("adjective", "noun")))


def _part(nouns: Sequence[str], split: str) -> list[str]:
    """The nouns of a split: one in eight each for validation and test."""
    places = {"validation": (6,), "test": (7,), "train": range(6)}[split]
    return [noun for i, noun in enumerate(nouns) if i % 8 in places]


@functools.cache
def python_reference(split: str) -> list[str]:
    """Sentences of the topics of Python's `help`, an eighth of the topics each for validation and test.

    Topics repeat one another: a sentence stands once, in the split that is held out further.
    """
    from pydoc_data.topics import topics

    texts: dict[str, list[str]] = {}
    seen: set[str] = set()
    for name, low, high in (("test", 0, 1 / 8), ("validation", 1 / 8, 1 / 4), ("train", 1 / 4, 1)):
        chosen = sorted(topic for topic in topics if low <= draw(f"topic {topic}") < high)
        sentences = dict.fromkeys(sentence for topic in chosen for sentence in sentences_of(topics[topic]))
        texts[name] = [sentence for sentence in sentences if sentence not in seen]
        seen |= set(sentences)
    return texts[split]
