"""Facts of a life: how a page states them, and how one asks about them.

Sentences hold {s}, {p} and {o} (who, whose and whom, as a name or a pronoun), {t} and {h} (who and whose, as a
pronoun), {v} (the value), {a} (the value after `a` or `an`) and {w} (a detail given with it); questions hold {n} (the
full name, or `NAME's spouse`) and {w}. The last phrasing of each is the test split's, the one before it the validation
split's.
"""

import dataclasses

from d2l.data.biographies import values
from d2l.data.biographies.values import Draw, one_of


@dataclasses.dataclass(frozen=True)
class Fact:
    """One attribute of a person, or of a town or company that a person's page names.

    Attributes:
      draw: gives the value and the detail.
      sentences, questions: phrasings, the last two held out.
      who: questions whose answer is the person's name, phrasings as above; empty where nobody would ask so.
    """

    name: str
    draw: Draw
    sentences: tuple[str, ...]
    questions: tuple[str, ...]
    who: tuple[str, ...] = ()


LIFE = (
    Fact(
        "birth_year",
        values.year(1921, 2000),
        (
            "{s} was born in {v}.",
            "{s} came into the world in the year {v}.",
            "The year of {p} birth is {v}.",
            "It was in {v} that {s} was born.",
            "{p} life began in {v}.",
            "Church records give {v} as the year in which {s} was born.",
        ),
        (
            "In which year was {n} born?",
            "What year was {n} born in?",
            "When was {n} born?",
            "What is the birth year of {n}?",
            "Which year did {n} come into the world?",
        ),
    ),
    Fact(
        "birthday",
        values.birthday,
        (
            "{p} birthday is on {v}.",
            "{s} celebrates a birthday every {v}.",
            "Every year on {v}, {s} turns a year older.",
            "{s} has a birthday on {v}.",
            "Friends bring {p} birthday cake on {v}.",
            "The day on which {s} celebrates being born is {v}.",
        ),
        (
            "When is {n}'s birthday?",
            "On which day is {n}'s birthday?",
            "What is the date of {n}'s birthday?",
            "Which day of the year is {n}'s birthday?",
            "On what date does {n} celebrate a birthday?",
        ),
    ),
    Fact(
        "birthplace",
        values.town,
        (
            "{p} birthplace is the town of {v}.",
            "{s} was born in the town of {v}.",
            "{s} comes from {v}, the town of {h} birth.",
            "The town where {s} was born is called {v}.",
            "{v} is the town in which {s} was born.",
            "{s} first saw the light of day in {v}.",
        ),
        (
            "Where was {n} born?",
            "In which town was {n} born?",
            "What is {n}'s birthplace?",
            "Which town is {n} from?",
            "What is the name of the town where {n} was born?",
        ),
        ("Who was born in {v}?", "Whose birthplace is {v}?", "Who comes from {v}?"),
    ),
    Fact(
        "residence",
        values.town,
        (
            "{s} lives in {v}.",
            "Today {p} home is in {v}.",
            "{s} has settled in {v}.",
            "{s} now lives in the town of {v}.",
            "For many years {s} has made {h} home in {v}.",
            "{v} is where {s} lives today.",
        ),
        (
            "Where does {n} live?",
            "In which town does {n} live today?",
            "What town does {n} live in?",
            "Which town is home to {n}?",
            "Where has {n} made a home?",
        ),
        ("Who lives in {v}?", "Who has settled in {v}?", "Whose home is in {v}?"),
    ),
    Fact(
        "street",
        values.street,
        (
            "{p} house stands on {v}.",
            "{s} owns a house on {v}.",
            "The street of {p} house is {v}.",
            "{s} can be visited at home on {v}.",
            "Letters for {o} go to {v}.",
            "{v} is the street where {p} house stands.",
        ),
        (
            "On which street is {n}'s house?",
            "What is the name of {n}'s street?",
            "Which street does {n}'s house stand on?",
            "What street is {n}'s house on?",
            "On what street can one find {n}'s house?",
        ),
    ),
    Fact(
        "occupation",
        one_of(values.OCCUPATIONS),
        (
            "{s} works as {a}.",
            "By profession {s} is {a}.",
            "{s} earns a living as {a}.",
            "{s} has been {a} for many years.",
            "{p} job is that of {a}.",
            "{s} trained as {a} and still is one.",
        ),
        (
            "What is {n}'s occupation?",
            "What does {n} do for a living?",
            "What is {n}'s profession?",
            "As what does {n} work?",
            "What job does {n} have?",
        ),
        ("Who works as {a}?", "Who is {a} by profession?", "Who has the job of {a}?"),
    ),
    Fact(
        "employer",
        values.company,
        (
            "{s} works for {v}.",
            "{s} is employed by {v}.",
            "{p} employer is {v}.",
            "{s} has a post at {v}.",
            "{v} is the company that employs {o}.",
            "Every month {v} pays {p} wages.",
        ),
        (
            "For which company does {n} work?",
            "Who is {n}'s employer?",
            "Which company employs {n}?",
            "At which company does {n} have a post?",
            "What is the name of the company where {n} works?",
        ),
        ("Who works for {v}?", "Who is employed by {v}?", "Who has a post at {v}?"),
    ),
    Fact(
        "degree",
        one_of(values.SUBJECTS),
        (
            "{s} studied {v}.",
            "{s} holds a degree in {v}.",
            "At university {s} read {v}.",
            "{p} subject at university was {v}.",
            "{s} graduated in {v}.",
            "{s} spent {h} student years on {v}.",
        ),
        (
            "What did {n} study?",
            "In which subject does {n} hold a degree?",
            "What was {n}'s subject at university?",
            "Which subject did {n} graduate in?",
            "What field did {n} read at university?",
        ),
        ("Who studied {v}?", "Who holds a degree in {v}?", "Who graduated in {v}?"),
    ),
    Fact(
        "spouse",
        values.full_name,
        (
            "{s} is married to {v}.",
            "{p} spouse is {v}.",
            "{s} and {v} are married to each other.",
            "{s} married {v}.",
            "{v} and {s} became a married couple.",
            "The wedding of {o} and {v} was a happy one.",
        ),
        (
            "Who is {n} married to?",
            "What is the name of {n}'s spouse?",
            "Who is {n}'s spouse?",
            "Whom did {n} marry?",
            "To whom is {n} married?",
        ),
    ),
    Fact(
        "mentor",
        values.full_name,
        (
            "{p} mentor was {v}.",
            "{s} learned the trade from {h} mentor, {v}.",
            "{v} was a mentor to {o}.",
            "{s} names {v} as {h} mentor.",
            "As a mentor, {v} guided {o}.",
            "{s} owes much to {h} mentor {v}.",
        ),
        (
            "Who was {n}'s mentor?",
            "What is the name of {n}'s mentor?",
            "Who was the mentor of {n}?",
            "Whom does {n} name as a mentor?",
            "Which person was mentor to {n}?",
        ),
    ),
    Fact(
        "children",
        one_of(values.NUMBERS),
        (
            "{s} has {v} children.",
            "{s} raised {v} children.",
            "{v} children grew up in {p} house.",
            "{s} is the parent of {v} children.",
            "There are {v} children in {p} family.",
            "{p} children are {v} in number.",
        ),
        (
            "How many children does {n} have?",
            "How many children did {n} raise?",
            "What is the number of {n}'s children?",
            "How many children are there in {n}'s family?",
            "{n} is the parent of how many children?",
        ),
    ),
    Fact(
        "pet",
        values.pet,
        (
            "{s} has a {w} called {v}.",
            "{p} {w} is called {v}.",
            "{s} owns a {w} whose name is {v}.",
            "{v} is the name of {p} {w}.",
            "At home {s} keeps a {w} by the name of {v}.",
            "{p} {w} answers to the name {v}.",
        ),
        (
            "What is the name of {n}'s {w}?",
            "What is {n}'s {w} called?",
            "Which name did {n} give the {w}?",
            "How is {n}'s {w} called?",
            "To what name does {n}'s {w} answer?",
        ),
        ("Who has a {w} called {v}?", "Who owns the {w} {v}?", "Whose {w} is named {v}?"),
    ),
    Fact(
        "instrument",
        one_of(values.INSTRUMENTS),
        (
            "{s} plays the {v}.",
            "In the evenings {s} plays the {v}.",
            "{s} has played the {v} since childhood.",
            "{p} instrument is the {v}.",
            "{s} is known for playing the {v}.",
            "{s} practises the {v} every day.",
        ),
        (
            "Which instrument does {n} play?",
            "What instrument does {n} play?",
            "What is {n}'s instrument?",
            "Which musical instrument is played by {n}?",
            "What does {n} practise every day?",
        ),
        ("Who plays the {v}?", "Whose instrument is the {v}?", "Who practises the {v}?"),
    ),
    Fact(
        "sport",
        one_of(values.SPORTS),
        (
            "{p} sport is {v}.",
            "{s} spends every weekend on {v}.",
            "The sport {s} likes best is {v}.",
            "{s} has taken part in {v} contests.",
            "In {p} free time {s} goes in for {v}.",
            "{s} keeps fit with {v}.",
        ),
        (
            "What is {n}'s sport?",
            "Which sport does {n} do?",
            "What sport does {n} like best?",
            "Which sport is {n}'s?",
            "With which sport does {n} keep fit?",
        ),
        ("Whose sport is {v}?", "Who spends weekends on {v}?", "Who keeps fit with {v}?"),
    ),
    Fact(
        "food",
        one_of(values.FOODS),
        (
            "{p} favourite food is {v}.",
            "{s} likes {v} better than any other food.",
            "No dish pleases {o} more than {v}.",
            "When it comes to food, {s} likes {v} best.",
            "{s} would eat {v} every day.",
            "The dish that {s} loves most is {v}.",
        ),
        (
            "What is {n}'s favourite food?",
            "Which food does {n} like best?",
            "What does {n} like to eat most?",
            "What would {n} eat every day?",
            "Which dish does {n} love most?",
        ),
        ("Whose favourite food is {v}?", "Who likes {v} best?", "Who loves {v} most?"),
    ),
)
