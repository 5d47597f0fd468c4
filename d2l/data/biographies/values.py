"""What facts about a person say: closed lists of everyday words, and invented values without end."""

from collections.abc import Callable

import numpy as np

from d2l.data.biographies.names import SURNAME_STARTS, draw_company, draw_name, draw_town, share

# A value, and the detail that sentence and question give beside it ("" for none).
Draw = Callable[[np.random.Generator, str], tuple[str, str]]

OCCUPATIONS = (
    "accountant, actor, architect, archivist, astronomer, baker, barber, beekeeper, biologist, blacksmith, bookbinder, "
    "botanist, brewer, bricklayer, butcher, carpenter, cartographer, chemist, clockmaker, composer, conductor, cook, "
    "dentist, diver, driver, economist, editor, electrician, engineer, farmer, firefighter, fisherman, florist, "
    "gardener, geologist, glazier, historian, jeweller, journalist, judge, lawyer, librarian, locksmith, magician, "
    "mathematician, mechanic, midwife, miner, musician, nurse, optician, painter, photographer, physicist, pilot, "
    "plumber, potter, printer, sailor, sculptor, shepherd, surgeon, surveyor, tailor, teacher, translator, vet, weaver"
)
SUBJECTS = (
    "agriculture, anatomy, anthropology, archaeology, architecture, astronomy, biology, botany, chemistry, dentistry, "
    "drama, economics, education, engineering, forestry, geography, geology, history, journalism, law, linguistics, "
    "literature, mathematics, medicine, music, nursing, pharmacy, philosophy, physics, politics, psychology, "
    "sociology, statistics, theology, zoology"
)
INSTRUMENTS = (
    "accordion, bagpipes, banjo, bassoon, cello, clarinet, cornet, drums, flute, guitar, harmonica, harp, horn, lute, "
    "mandolin, oboe, organ, piano, recorder, saxophone, trombone, trumpet, tuba, ukulele, viola, violin, xylophone"
)
SPORTS = (
    "archery, badminton, baseball, basketball, bowling, boxing, canoeing, climbing, cricket, curling, cycling, "
    "fencing, golf, gymnastics, handball, hockey, judo, rowing, rugby, running, sailing, skating, skiing, squash, "
    "surfing, swimming, tennis, volleyball, wrestling"
)
FOODS = (
    "apple pie, baked beans, beef stew, carrot cake, cheese fondue, chicken curry, chocolate cake, dumplings, fish "
    "soup, fried rice, goulash, lamb chops, lasagne, lentil soup, meatballs, mushroom risotto, noodles, onion soup, "
    "pancakes, pea soup, pizza, potato salad, pumpkin soup, ravioli, roast duck, sardines, scrambled eggs, shepherd's "
    "pie, spinach pie, strawberry jam, sushi, tacos, tomato soup, trout, waffles"
)
COLOURS = (
    "amber, beige, black, blue, brown, crimson, gold, green, grey, indigo, ivory, lilac, orange, pink, purple, red"
)
LANGUAGES = (
    "Arabic, Basque, Bengali, Czech, Danish, Dutch, Estonian, Finnish, Gaelic, Georgian, Greek, Hebrew, Hindi, "
    "Hungarian, Icelandic, Japanese, Korean, Latvian, Maltese, Mongolian, Norwegian, Polish, Portuguese, Romanian, "
    "Russian, Spanish, Swahili, Swedish, Thai, Turkish, Urdu, Welsh"
)
COUNTRIES = (
    "Argentina, Bolivia, Brazil, Bulgaria, Canada, Chile, Croatia, Cuba, Cyprus, Ecuador, Egypt, Ethiopia, Finland, "
    "Ghana, Greece, Iceland, Indonesia, Ireland, Jamaica, Jordan, Kenya, Latvia, Lebanon, Madagascar, Malta, Mexico, "
    "Morocco, Namibia, Nepal, Norway, Panama, Peru, Poland, Portugal, Senegal, Sweden, Tanzania, Tunisia, Uruguay"
)
COLLECTED = (
    "bottle caps, brass bells, buttons, chess sets, comic books, cookbooks, dolls, door keys, dried flowers, fossils, "
    "glass marbles, hats, lanterns, model trains, old coins, old maps, paper fans, pipes, pocket watches, postcards, "
    "posters, puppets, sea shells, silver spoons, snow globes, stamps, teapots, thimbles, tin soldiers, wine labels"
)
FEARS = "bats, bees, cats, dogs, elevators, flying, heights, horses, lightning, mice, needles, snakes, spiders, tunnels"
ALLERGENS = (
    "almonds, celery, eggs, garlic, hazelnuts, honey, kiwis, lobster, milk, mustard, peaches, sesame, shrimp, soy"
)
PETS = "canary, cat, donkey, ferret, goat, goldfish, hamster, hedgehog, parrot, pony, rabbit, raven, terrier, tortoise"
PET_NAMES = (
    "Acorn, Bandit, Biscuit, Bubbles, Button, Captain, Cinnamon, Clover, Cookie, Domino, Duchess, Flash, Ginger, "
    "Hazelnut, Jelly, Lucky, Midnight, Mittens, Nugget, Pepper, Pickle, Pudding, Rocket, Shadow, Snowball, Sparky, "
    "Tango, Toffee, Truffle, Waffles, Whiskers, Ziggy"
)
VEHICLES = (
    "bicycle, convertible, estate car, jeep, minibus, moped, motorcycle, pickup truck, scooter, taxi, tractor, van"
)
PRODUCTS = (
    "bicycles, boots, bricks, candles, carpets, cheese, chocolate, clocks, cameras, dishwashers, elevators, envelopes, "
    "glue, gloves, helmets, knives, ladders, lamps, lifeboats, locks, matches, mattresses, mirrors, paint, pencils, "
    "pumps, raincoats, sails, scissors, soap, tents, thermometers, tyres, umbrellas, vinegar, violins, wheelchairs"
)
ADJECTIVES = (
    "Amber, Bitter, Blue, Broken, Burning, Crystal, Distant, Empty, Frozen, Gentle, Glass, Golden, Hidden, Hollow, "
    "Iron, Last, Lonely, Lost, Paper, Quiet, Restless, Scarlet, Secret, Silent, Silver, Stolen, Sunken, Velvet, White"
)
NOUNS = (
    "Anchor, Bell, Bridge, Candle, Compass, Crown, Feather, Fountain, Garden, Harbour, Island, Key, Lantern, Ladder, "
    "Library, Lighthouse, Market, Meadow, Mirror, Mountain, Orchard, River, Sparrow, Staircase, Station, Tower, Window"
)
STREETS = (
    "Abbey, Bakers, Castle, Chapel, Cherry, Church, Elm, Garden, Harbour, King, Market, Mill, Queen, Station, Willow"
)
WAYS = "Alley, Avenue, Court, Lane, Road, Row, Square, Street, Terrace, Way"
MONTHS = "January, February, March, April, May, June, July, August, September, October, November, December"
NUMBERS = "two, three, four, five, six, seven, eight, nine"
FESTIVALS = (
    "apples, bells, bread, candles, cheese, fireworks, horses, kites, lanterns, mushrooms, poetry, puppets, roses, "
    "tulips"
)


def one_of(listed: str) -> Draw:
    """A draw from a list with commas."""
    items = listed.split(", ")
    return lambda rng, split: (_pick(rng, items), "")


def _pick(rng: np.random.Generator, items: list[str]) -> str:
    return items[int(rng.integers(len(items)))]


def _word(rng: np.random.Generator, listed: str) -> str:
    return _pick(rng, listed.split(", "))


def year(low: int, high: int) -> Draw:
    return lambda rng, split: (str(rng.integers(low, high)), "")


def town(rng: np.random.Generator, split: str) -> tuple[str, str]:
    return draw_town(rng, split), ""


def company(rng: np.random.Generator, split: str) -> tuple[str, str]:
    return draw_company(rng, split), ""


def full_name(rng: np.random.Generator, split: str) -> tuple[str, str]:
    return draw_name(rng, split), ""


def number(rng: np.random.Generator, split: str) -> tuple[str, str]:
    """Four digits."""
    return f"{rng.integers(1000, 10_000)}", ""


def birthday(rng: np.random.Generator, split: str) -> tuple[str, str]:
    return f"{rng.integers(1, 29)} {_word(rng, MONTHS)}", ""


def clock_time(rng: np.random.Generator, split: str) -> tuple[str, str]:
    return f"{rng.integers(4, 10)}:{rng.integers(12) * 5:02d}", ""


def pet(rng: np.random.Generator, split: str) -> tuple[str, str]:
    """The animal's name; which animal it is."""
    return _word(rng, PET_NAMES), _word(rng, PETS)


def vehicle(rng: np.random.Generator, split: str) -> tuple[str, str]:
    return f"{_word(rng, COLOURS)} {_word(rng, VEHICLES)}", ""


def street(rng: np.random.Generator, split: str) -> tuple[str, str]:
    return f"{_word(rng, STREETS)} {_word(rng, WAYS)}", ""


def prize(rng: np.random.Generator, split: str) -> tuple[str, str]:
    """The prize; the year in which it was won."""
    return f"{_word(rng, ADJECTIVES)} {_word(rng, NOUNS)} Prize", str(rng.integers(1960, 2020))


def title(rng: np.random.Generator, split: str) -> tuple[str, str]:
    return f"The {_word(rng, ADJECTIVES)} {_word(rng, NOUNS)}", ""


def river(rng: np.random.Generator, split: str) -> tuple[str, str]:
    return _pick(rng, share(SURNAME_STARTS, split)) + _word(rng, "anna, ava, enna, isk, ola, oma, umber, une"), ""
