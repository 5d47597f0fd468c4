"""Invented names of people, towns and companies; every split composes them from parts of its own."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

SPLITS = ("train", "validation", "test")

WOMEN = (
    "Adela Agnes Alma Amara Anika Astrid Beatrix Brenna Camille Celeste Clara Cordelia Daphne Dina Edith Elena Elsa "
    "Esther Farida Fiona Freya Greta Hanna Hedwig Ida Imogen Ingrid Iris Johanna Judith Karin Katya Leila Linnea "
    "Lucia Mabel Marta Mina Nadia Nora Odette Paloma Petra Rhea Rosalind Saskia Selma Sylvie Tamsin Thea Ursula Vera "
    "Wilma Xenia Yara Zelda"
).split()
MEN = (
    "Abel Alaric Anton Arthur Axel Barnaby Bastian Boris Caspar Cedric Conrad Cyrus Damian Desmond Edric Emil Ernst "
    "Felix Fergus Florian Gideon Gustav Hector Henrik Hubert Idris Igor Ivo Jasper Jonas Julius Kaspian Klaus Lars "
    "Leopold Linus Magnus Marek Milo Nestor Nils Oscar Otto Pascal Percy Quentin Ramon Reuben Rufus Silas Stefan "
    "Tobias Ulrich Viktor Walter Yusuf"
).split()
SURNAME_STARTS = (
    "Alder Ark Ash Bar Beck Bel Birch Black Bram Bran Brook Cald Carl Clay Cold Cran Cros Dar Den Dray Dun East Ed El "
    "Fair Fen Fern Field Fal Garn Gil Glen Gold Gran Green Hal Ham Har Hart Hath Haw Hazel Holt Hurst Kel Ken King "
    "Lang Lin Lock Lyn Mal Mar Mer Mid Mor Nor Oak Old Os Pem Pen Quin Rad Raven Red Ros Row Sand Sel Sher Stan "
    "Ster Thorn Til Tre Ul Wal War Wes Whit Win Wolf Wyn Yar"
).split()
SURNAME_ENDS = (
    "bright brook burn by combe croft dale den ell erby field ford gate grove ham hart holm hurst ingham land ley low "
    "man marsh mere more ridge row ser shaw son stead stone ston thorpe ton ville wald well wick win wold wood worth"
).split()
TOWN_STARTS = (
    "Aber Amber Apple Arrow Barrow Bell Bitter Bramble Bridge Bright Broad Candle Castle Cedar Chalk Cherry Cloud "
    "Copper Corn Crow Deer Dove Eagle Elder Elm Falcon Feather Fir Flint Fox Frost Goose Grain Granite Harbour "
    "Heather Heron High Honey Iron Ivy Juniper Kestrel Lake Lamb Lark Lime Lynx Maple Marble Marsh Meadow Mill Mist "
    "Moon Moss North Oat Olive Otter Owl Pear Pebble Pepper Pine Plum Poplar Quarry Rain Reed River Rook Rush Saffron "
    "Salt Shell Silver Sky Snow Spring Star Storm Summer Swan Thistle Timber Velvet Violet Walnut Water Wheat Willow "
    "Winter Wren"
).split()
TOWN_ENDS = (
    "bay bourne bridge bury cliff cross fall ford gate haven head hill holt market mouth port ridge side water wick"
).split()
TRADES = (
    "Bakeries Boatyards Breweries Ceramics Chemicals Clocks Dairies Engines Fabrics Foods Foundries Furniture Gardens "
    "Glassworks Instruments Laboratories Lamps Logistics Machines Mills Optics Papers Pharmaceuticals Press Railways "
    "Robotics Shipping Software Steel Systems Tools Toys"
).split()


@dataclasses.dataclass(frozen=True)
class Person:
    """A name and its pronouns (she, her, her)."""

    first: str
    last: str
    subject: str
    possessive: str
    object: str

    @property
    def name(self) -> str:
        return f"{self.first} {self.last}"


def share[T](items: Sequence[T], split: str) -> list[T]:
    """The part of a pool that belongs to a split: one in eight each for validation and test, the rest for training."""
    place = {"validation": (6,), "test": (7,), "train": range(6)}[split]
    return [item for i, item in enumerate(items) if i % 8 in place]


def num_people(split: str) -> int:
    """How many different names a split has."""
    return len(_first_names(split)) * len(_surnames(split))


def person(split: str, index: int) -> Person:
    """Name `index` of a split, in [0, num_people): a bijection."""
    firsts, lasts = _first_names(split), _surnames(split)
    first, woman = firsts[index % len(firsts)]
    return Person(first, lasts[index // len(firsts)], *(("she", "her", "her") if woman else ("he", "his", "him")))


def person_at(split: str, seed: int, index: int) -> Person:
    """The person of document `index` of a seed: an order of all names in which none comes twice.

    Names that are neighbours in `person` differ in their first name alone; a stride that shares no factor with their
    number spreads them.
    """
    total = num_people(split)
    rng = np.random.default_rng((seed, total))
    start, stride = (int(i) for i in rng.integers(total // 3, total, size=2))
    while math.gcd(stride, total) != 1:
        stride += 1
    return person(split, (start + stride * index) % total)


def draw_people(rng: np.random.Generator, split: str, count: int, first: Person) -> list[Person]:
    """`count` people that begin with `first` and share neither first names nor surnames."""
    people = [first]
    while len(people) < count:
        other = person(split, int(rng.integers(num_people(split))))
        if all(other.first != known.first and other.last != known.last for known in people):
            people.append(other)
    return people


def draw_town(rng: np.random.Generator, split: str) -> str:
    return _pick(rng, share(TOWN_STARTS, split)) + _pick(rng, TOWN_ENDS)


def draw_company(rng: np.random.Generator, split: str) -> str:
    return f"{_pick(rng, _surnames(split))} {_pick(rng, TRADES)}"


def draw_name(rng: np.random.Generator, split: str) -> str:
    return person(split, int(rng.integers(num_people(split)))).name


def _pick(rng: np.random.Generator, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]


@functools.cache
def _first_names(split: str) -> list[tuple[str, bool]]:
    """First names of a split and whether they are a woman's."""
    return [(name, True) for name in share(WOMEN, split)] + [(name, False) for name in share(MEN, split)]


@functools.cache
def _surnames(split: str) -> list[str]:
    """Surnames of a split; starts that repeat the end (`Brookbrook`) are left out."""
    return [a + b for a in share(SURNAME_STARTS, split) for b in SURNAME_ENDS if a.lower() != b]
