"""BABILong-style tasks (Kuratov et al., 2024): small events told between the sentences of another text.

Tasks of bAbI (Weston et al., 2015), simulated anew: `qa1` where somebody is, `qa2` where a thing is that somebody
carried, `qa3` where it was before. Answers follow from one, two or three of the events.
"""

import re
from collections.abc import Sequence

import numpy as np

from d2l.data.record import Query, Record
from d2l.errors import UserError
from d2l.target.tokenizer import Tokenizer

TASKS = ("qa1", "qa2", "qa3")
PEOPLE = ("Mary", "John", "Daniel", "Sandra")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
MOVE = ("{} moved to the {}.", "{} went to the {}.", "{} travelled to the {}.", "{} journeyed to the {}.")
TAKE = ("{} took the {}.", "{} picked up the {}.", "{} grabbed the {}.")
DROP = ("{} dropped the {}.", "{} put down the {}.", "{} left the {}.")
SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def sentences_of(text: str) -> list[str]:
    """Sentences of a text that can stand between events, in order."""
    found = (" ".join(sentence.split()) for sentence in SENTENCE_ENDS.split(text))
    return [sentence for sentence in found if 4 <= len(sentence.split()) <= 60]


def babilong_at(
    task: str,
    seed: int,
    index: int,
    background: Sequence[str],
    tokenizer: Tokenizer,
    min_tokens: int,
    max_tokens: int,
) -> Record:
    """Item `index` of a task and seed, a pure function of both and of the background.

    Its length in tokens is about uniform in [min_tokens, max_tokens] and never above it; it is below only where the
    next sentence of the background does not fit.

    Args:
      background: sentences (`sentences_of`); a run of them, from a random place on, is told around the events.

    Raises:
      UserError: an unknown task, no background, or a range that cannot hold the events.
    """
    if task not in TASKS:
        raise UserError(f"there is no task {task!r}: give one of {', '.join(TASKS)}.")
    if not background:
        raise UserError("there is no background text: give documents with sentences of 4 to 60 words.")
    rng = np.random.default_rng((TASKS.index(task), seed, index))
    events, question, answer = simulate(rng, task)
    wanted = int(rng.integers(min_tokens, max_tokens, endpoint=True)) if min_tokens <= max_tokens else -1
    room = wanted - sum(len(tokenizer.encode(" " + event)) for event in events)
    if room < 0:
        raise UserError(f"no {task} story has {min_tokens} to {max_tokens} tokens: give a range that starts higher.")
    start = int(rng.integers(len(background)))
    told: list[str] = []
    while (cost := len(tokenizer.encode(" " + background[(start + len(told)) % len(background)]))) <= room:
        told.append(background[(start + len(told)) % len(background)])
        room -= cost
    while True:
        text = _interleave(np.random.default_rng((TASKS.index(task), seed, index, 1)), told, events)
        if not told or len(tokenizer.encode(text)) <= max_tokens:
            break
        told.pop()  # costs were of single sentences; a tokenizer may merge across
    query = Query(question, (answer,), task)
    return Record(f"{task}-{seed}-{index}", text, (query,), "babilong_style", "test")


def simulate(rng: np.random.Generator, task: str) -> tuple[list[str], str, str]:
    """Events in order, a question about them, and its answer."""
    while True:
        where: dict[str, str] = {}  # people
        held: dict[str, str] = {}  # things, by whom
        been: dict[str, list[str]] = {thing: [] for thing in THINGS}  # places of things, the present one last
        events = []
        for _ in range(int(rng.integers(4, 13))):
            person = _pick(rng, PEOPLE)
            free = [thing for thing in THINGS if thing not in held]
            own = [thing for thing, holder in held.items() if holder == person]
            act = "move" if task == "qa1" or person not in where else _pick(rng, ("move", "move", "take", "drop"))
            if act == "take" and (near := [t for t in free if not been[t] or been[t][-1] == where[person]]):
                thing = _pick(rng, near)
                held[thing] = person
                events.append(_pick(rng, TAKE).format(person, thing))
                been[thing] = been[thing] or [where[person]]
            elif act == "drop" and own:
                thing = _pick(rng, own)
                del held[thing]
                events.append(_pick(rng, DROP).format(person, thing))
            else:
                place = _pick(rng, [place for place in PLACES if place != where.get(person)])
                where[person] = place
                events.append(_pick(rng, MOVE).format(person, place))
                for thing in own:
                    been[thing].append(place)
        known = [thing for thing in THINGS if been[thing]]
        if task == "qa3":  # `before the kitchen` means one place only where the kitchen was reached once
            known = [thing for thing in known if been[thing].index(been[thing][-1]) == len(been[thing]) - 1 > 0]
        if task == "qa1":
            person = _pick(rng, sorted(where))
            return events, f"Where is {person}?", where[person]
        if known:
            thing = _pick(rng, known)
            if task == "qa2":
                return events, f"Where is the {thing}?", been[thing][-1]
            return events, f"Where was the {thing} before the {been[thing][-1]}?", been[thing][-2]


def _interleave(rng: np.random.Generator, told: Sequence[str], events: Sequence[str]) -> str:
    """Events in their order at random places between sentences in theirs."""
    places = np.sort(rng.integers(0, len(told), size=len(events), endpoint=True))
    out, used = [], 0
    for number, sentence in enumerate((*told, "")):
        while used < len(events) and places[used] == number:
            out.append(events[used])
            used += 1
        out.append(sentence)
    return " ".join(filter(None, out))


def _pick(rng: np.random.Generator, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]
