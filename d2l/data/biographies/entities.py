"""Facts about towns and companies that a life names: the second step of questions in two steps.

In a sentence {v} is the value and {e} the town or company, in a question {n} is the person. Phrasings as in `facts`.
"""

from d2l.data.biographies import values
from d2l.data.biographies.facts import Fact
from d2l.data.biographies.values import one_of

COMPANY = (
    Fact(
        "company_product",
        one_of(values.PRODUCTS),
        (
            "{e} makes {v}.",
            "{e} is known for its {v}.",
            "The main product of {e} is {v}.",
            "All over the world people buy {v} from {e}.",
            "{e} produces {v}.",
            "The workshops of {e} turn out {v}.",
        ),
        (
            "What does the company that {n} works for make?",
            "What is the main product of {n}'s employer?",
            "What does {n}'s employer make?",
            "What does the employer of {n} produce?",
            "What is turned out by the company that employs {n}?",
        ),
    ),
    Fact(
        "company_year",
        values.year(1820, 1990),
        (
            "{e} was founded in {v}.",
            "{e} has existed since {v}.",
            "The company {e} opened its doors in {v}.",
            "{e} goes back to the year {v}.",
            "{v} is the year in which {e} began.",
            "The history of {e} starts in {v}.",
        ),
        (
            "In which year was the company that {n} works for founded?",
            "When was {n}'s employer founded?",
            "Since which year has {n}'s employer existed?",
            "In which year did the company that employs {n} begin?",
            "In what year does the history of {n}'s employer start?",
        ),
    ),
    Fact(
        "company_head",
        values.full_name,
        (
            "{e} is led by {v}.",
            "The head of {e} is {v}.",
            "{v} leads the company {e}.",
            "{v} runs {e}.",
            "At the top of {e} stands {v}.",
            "The staff of {e} answer to {v}.",
        ),
        (
            "Who leads the company that {n} works for?",
            "Who is the head of {n}'s employer?",
            "Who leads {n}'s employer?",
            "Who runs the company that employs {n}?",
            "To whom do the staff of {n}'s employer answer?",
        ),
    ),
)
BIRTHPLACE = (
    Fact(
        "birthplace_river",
        values.river,
        (
            "{e} lies on the river {v}.",
            "The river {v} flows through {e}.",
            "{e} stands on the banks of the {v}.",
            "The {v} is the river of {e}.",
            "Boats reach {e} on the river {v}.",
            "The bridges of {e} cross the river {v}.",
        ),
        (
            "On which river lies the town where {n} was born?",
            "Which river flows through the town where {n} was born?",
            "What is the river of {n}'s birthplace?",
            "Which river does {n}'s birthplace stand on?",
            "What river do the bridges of {n}'s birthplace cross?",
        ),
    ),
    Fact(
        "birthplace_festival",
        one_of(values.FESTIVALS),
        (
            "Every summer {e} holds a festival of {v}.",
            "{e} is famous for its festival of {v}.",
            "People travel far to see the festival of {v} in {e}.",
            "The festival of {v} is the pride of {e}.",
            "Once a year {e} celebrates a festival of {v}.",
            "In {e} the year ends with a festival of {v}.",
        ),
        (
            "What is the festival in {n}'s birthplace about?",
            "For what festival is the town where {n} was born famous?",
            "What does the festival of the town where {n} was born celebrate?",
            "What is celebrated once a year in {n}'s birthplace?",
            "With a festival of what does the year end in {n}'s birthplace?",
        ),
    ),
)
