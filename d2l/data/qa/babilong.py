"""BABILong-style tasks (Kuratov et al., 2024): small events told between the sentences of another text.

Tasks of bAbI (Weston et al., 2015), simulated anew: `qa1` where somebody is, `qa2` where a thing is that somebody
carried, `qa3` where it was before. Answers follow from one, two or three of the events.
"""

from collections.abc import Sequence

import numpy as np

from d2l.data.background import surround
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
    start = int(rng.integers(len(background)))
    try:
        text = surround(
            rng, events, lambda i: background[(start + i) % len(background)], tokenizer, min_tokens, max_tokens
        )
    except UserError as error:
        raise UserError(f"no {task} story fits: {error}") from error
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


def _pick(rng: np.random.Generator, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]
