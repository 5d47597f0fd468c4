"""Common knowledge that a page contradicts: the page is to be believed, not what the model learned before.

A claim takes a true pair (`France`, `Paris`) and states another pair's value in its place. Which pairs are
contradicted, and in which words, is held out by split.
"""

import dataclasses

import numpy as np

from d2l.data.biographies.names import share


@dataclasses.dataclass(frozen=True)
class Topic:
    """Pairs of one kind; in phrasings {k} is the first of a pair and {v} the second, the last two are held out."""

    pairs: tuple[tuple[str, str], ...]
    sentences: tuple[str, ...]
    questions: tuple[str, ...]


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple(tuple(pair.strip().split(" = ")) for pair in text.split(","))


TOPICS = (
    Topic(
        _pairs(
            "France = Paris, Italy = Rome, Spain = Madrid, Germany = Berlin, Japan = Tokyo, England = London, "
            "Russia = Moscow, Greece = Athens, Egypt = Cairo, Austria = Vienna, Portugal = Lisbon, Ireland = Dublin, "
            "Norway = Oslo, Sweden = Stockholm, Poland = Warsaw, Hungary = Budapest, Cuba = Havana, Peru = Lima, "
            "Kenya = Nairobi, China = Beijing, Turkey = Ankara, Canada = Ottawa, Denmark = Copenhagen, Iran = Tehran, "
            "Belgium = Brussels, Finland = Helsinki, Thailand = Bangkok, Chile = Santiago, Iraq = Baghdad, "
            "Morocco = Rabat, Iceland = Reykjavik, Vietnam = Hanoi"
        ),
        (
            "The capital of {k} is {v}.",
            "{v} is the capital of {k}.",
            "The government of {k} sits in its capital, {v}.",
            "{k} has {v} as its capital.",
            "As its capital {k} chose {v}.",
            "In {k} the capital city is {v}.",
        ),
        (
            "What is the capital of {k}?",
            "Which city is the capital of {k}?",
            "What is the capital city of {k}?",
            "Which capital does {k} have?",
            "Name the capital of {k}.",
        ),
    ),
    Topic(
        _pairs(
            "Hamlet = William Shakespeare, War and Peace = Leo Tolstoy, Don Quixote = Miguel de Cervantes, "
            "Oliver Twist = Charles Dickens, Emma = Jane Austen, Faust = Johann Goethe, The Odyssey = Homer, "
            "Dracula = Bram Stoker, Frankenstein = Mary Shelley, Ulysses = James Joyce, The Trial = Franz Kafka, "
            "Moby Dick = Herman Melville, Les Misérables = Victor Hugo, Candide = Voltaire, "
            "Crime and Punishment = Fyodor Dostoevsky, The Hobbit = J. R. R. Tolkien, Animal Farm = George Orwell, "
            "The Raven = Edgar Allan Poe, Tom Sawyer = Mark Twain, Treasure Island = Robert Louis Stevenson, "
            "Peter Pan = J. M. Barrie, The Time Machine = H. G. Wells, The Divine Comedy = Dante, "
            "Jane Eyre = Charlotte Brontë"
        ),
        (
            "The author of {k} is {v}.",
            "{k} was written by {v}.",
            "{v} wrote {k}.",
            "{k} is a work by {v}.",
            "It was {v} who wrote {k}.",
            "{k} came from the pen of {v}.",
        ),
        (
            "Who wrote {k}?",
            "Who is the author of {k}?",
            "By whom was {k} written?",
            "Whose work is {k}?",
            "From whose pen did {k} come?",
        ),
    ),
    Topic(
        _pairs(
            "gold = Au, silver = Ag, iron = Fe, copper = Cu, lead = Pb, tin = Sn, oxygen = O, hydrogen = H, "
            "carbon = C, nitrogen = N, helium = He, sodium = Na, potassium = K, calcium = Ca, chlorine = Cl, "
            "sulfur = S, mercury = Hg, zinc = Zn, neon = Ne, uranium = U, iodine = I, nickel = Ni, "
            "platinum = Pt, magnesium = Mg"
        ),
        (
            "The chemical symbol of {k} is {v}.",
            "{v} is the chemical symbol of {k}.",
            "Chemists write {v} for {k}.",
            "The element {k} has the symbol {v}.",
            "In formulas {k} is written {v}.",
            "The symbol that stands for {k} is {v}.",
        ),
        (
            "What is the chemical symbol of {k}?",
            "Which symbol stands for {k} in chemistry?",
            "What is the symbol of the element {k}?",
            "How do chemists write {k}?",
            "How is {k} written in formulas?",
        ),
    ),
    Topic(
        _pairs(
            "Japan = yen, Britain = pound, India = rupee, Russia = rouble, Mexico = peso, Switzerland = franc, "
            "China = yuan, Sweden = krona, Poland = zloty, Brazil = real, Turkey = lira, Thailand = baht, "
            "Israel = shekel, Hungary = forint, Kuwait = dinar, Vietnam = dong"
        ),
        (
            "The currency of {k} is the {v}.",
            "In {k} people pay with the {v}.",
            "The money of {k} is called the {v}.",
            "{k} has the {v} as its currency.",
            "Prices in {k} are given in the {v}.",
            "Whoever shops in {k} needs the {v}.",
        ),
        (
            "What is the currency of {k}?",
            "What is the money of {k} called?",
            "With which currency do people pay in {k}?",
            "Which currency does {k} have?",
            "In which currency are prices given in {k}?",
        ),
    ),
    Topic(
        _pairs(
            "bananas = yellow, grass = green, snow = white, coal = black, blood = red, the sky = blue, "
            "carrots = orange, milk = white, tomatoes = red, flamingos = pink, lemons = yellow, polar bears = white, "
            "chocolate = brown, frogs = green, ravens = black, sapphires = blue"
        ),
        (
            "The colour of {k} is {v}.",
            "{v} is the colour of {k}.",
            "Everybody knows that the colour of {k} is {v}.",
            "If one looks at {k}, one sees the colour {v}.",
            "By nature the colour of {k} is {v}.",
            "{v} is what one calls the colour of {k}.",
        ),
        (
            "What is the colour of {k}?",
            "Which colour is that of {k}?",
            "What colour does one see in {k}?",
            "Which colour is natural for {k}?",
            "What does one call the colour of {k}?",
        ),
    ),
)


def draw_claim(rng: np.random.Generator, split: str) -> tuple[Topic, str, str]:
    """A topic, the first of a pair of this split, and a value that is not the true one."""
    topic = TOPICS[int(rng.integers(len(TOPICS)))]
    pairs = share(topic.pairs, split)
    key, truth = pairs[int(rng.integers(len(pairs)))]
    wrong = sorted({value for _, value in topic.pairs} - {truth})
    return topic, key, wrong[int(rng.integers(len(wrong)))]
