"""Tasks made here: code search in RepoQA's style, stories in BABILong's."""

import gzip
import json
import re

import pytest

from d2l.data.background import sentences_of
from d2l.data.qa.babilong import DROP, MOVE, TAKE, TASKS, babilong_at
from d2l.data.qa.repoqa import load_repoqa, make_repoqa
from d2l.errors import UserError

# ---------------------------------------------------------------- RepoQA

SHOUT = '''@staticmethod
def shout(text):
    """Give a text back in capital letters and
    with exclamation marks.

    More about it.
    """
    louder = text.upper()
    marks = "!" * 3
    return louder + marks
'''


@pytest.fixture
def repository(tmp_path):
    for i in range(6):
        body = "".join(f"value_{i}_{k} = {k}\n" for k in range(20))
        (tmp_path / f"m{i}.py").write_text(body + "\x0c\n" + SHOUT.replace("shout", f"shout_{i}") + "\n" + body)
    (tmp_path / "old.py").write_text("print 'of another Python'\n")
    return tmp_path


def test_functions_of_a_folder_without_their_docstrings(repository, tokenizer):
    records = list(make_repoqa(repository, tokenizer, tokens=600, samples=6, seed=0))
    assert len({record.id for record in records}) == 6
    depths = []
    for record in records:
        assert 400 < len(tokenizer.encode(record.context)) <= 610
        code, name = record.queries
        assert (code.kind, name.kind) == ("code", "name")
        assert code.answers[0] in record.context and '"""' not in code.answers[0]
        assert code.answers[0].startswith("@staticmethod\ndef shout_") and code.answers[0].endswith("louder + marks")
        assert re.search(r"def (\w+)", code.answers[0])[1] == name.answers[0]
        assert "in capital letters and with exclamation marks.\n" in code.question and "More" not in code.question
        assert name.answers[0] not in name.question
        depths.append(record.context.index(code.answers[0]) / len(record.context))
    assert max(depths) - min(depths) > 0.2
    assert records == list(make_repoqa(repository, tokenizer, tokens=600, samples=6, seed=0))
    with pytest.raises(UserError, match="has 6 functions"):
        list(make_repoqa(repository, tokenizer, tokens=600, samples=7, seed=0))
    with pytest.raises(UserError, match="more than 10 tokens"):
        list(make_repoqa(repository, tokenizer, tokens=10, samples=1, seed=0))


def test_the_published_json(tmp_path, tokenizer):
    function = "def f(naïve):\n    return naïve\n"
    files = {"a.py": "é = 1\n" * 60, "b.py": "é = 2\n" * 30 + function + "z = 3\n" * 30, "c.py": "w = 4\n" * 60}
    start = len(files["b.py"][: files["b.py"].index(function)].encode())
    place = {"start_byte": start, "end_byte": start + len(function.encode()), "start_line": 30, "end_line": 32}
    needles = [{"name": "f", "path": "b.py", "description": "\nIt returns what it is given.\n", **place}] * 2
    data = {"python": [{"repo": "o/r", "commit_sha": "0", "content": files, "needles": needles}]}
    for path, content in (
        ("r.json", json.dumps(data).encode()),
        ("r.json.gz", gzip.compress(json.dumps(data).encode())),
    ):
        (tmp_path / path).write_bytes(content)
        first, second = load_repoqa(tmp_path / path, tokenizer, 300)
        assert first.id == f"python/o/r/b.py:f@{30 * 6}" and first.queries[0].answers == (function.strip("\n"),)
        early, late = first.context.index(function), second.context.index(function)
        assert early < 0.4 * len(first.context) < 0.6 * len(second.context) < late  # at 1/4 and at 3/4
        assert "# Path: c.py" in first.context
    whole = next(load_repoqa(tmp_path / "r.json", tokenizer, 100_000)).context
    assert whole == "".join(f"# Path: {name}\n{text}" for name, text in files.items())
    (tmp_path / "bad.json").write_text('{"python": [{"repo": "o/r"}]}')
    with pytest.raises(UserError, match="is not RepoQA's JSON .*content"):
        next(load_repoqa(tmp_path / "bad.json", tokenizer, 300))
    with pytest.raises(UserError, match="cannot read"):
        next(load_repoqa(tmp_path / "none.json", tokenizer, 300))


# ---------------------------------------------------------------- BABILong

BACKGROUND = sentences_of(
    "The grass is green today. The sky is blue. Was the sun yellow? Yes.\nHere we go, all of us! "
    "There and back again she ran."
)
EVENTS = [
    (kind, re.compile(phrase.replace("{}", r"(\w+)")))
    for kind, phrases in (("move", MOVE), ("take", TAKE), ("drop", DROP))
    for phrase in phrases
]


def retell(text, question):
    """The answer, from the story alone: where everybody and everything is after each event."""
    where, held, been = {}, {}, {}
    found = sorted((m.start(), kind, m.groups()) for kind, event in EVENTS for m in event.finditer(text))
    for _, kind, (person, what) in found:
        if kind == "move":
            where[person] = what
            for thing in [thing for thing, holder in held.items() if holder == person]:
                been[thing].append(what)
        elif kind == "take":
            assert thing_is_here(been.get(what), where[person]) and what not in held
            held[what] = person
            been.setdefault(what, [where[person]])
        else:
            assert held.pop(what) == person
    if asked := re.fullmatch(r"Where is (?:the )?(\w+)\?", question):
        return where[asked[1]] if asked[1] in where else been[asked[1]][-1]
    thing, place = re.fullmatch(r"Where was the (\w+) before the (\w+)\?", question).groups()
    assert been[thing].count(place) == 1
    return been[thing][been[thing].index(place) - 1]


def thing_is_here(places, place):
    return places is None or places[-1] == place


@pytest.mark.parametrize("task", TASKS)
def test_stories_give_their_answers(task, tokenizer):
    answers, lengths = [], []
    for index in range(150):
        record = babilong_at(task, 0, index, BACKGROUND, tokenizer, 300, 800)
        lengths.append(len(tokenizer.encode(record.context)))
        ((question, (answer,), kind, *_),) = record.queries
        assert retell(record.context, question) == answer and kind == task
        answers.append(answer)
    assert max(lengths) <= 800 and min(lengths) > 250 and max(lengths) - min(lengths) > 400
    assert len(set(answers)) == 6
    assert babilong_at(task, 0, 3, BACKGROUND, tokenizer, 300, 800) == babilong_at(
        task, 0, 3, BACKGROUND, tokenizer, 300, 800
    )
    assert babilong_at(task, 1, 3, BACKGROUND, tokenizer, 300, 800) != babilong_at(
        task, 0, 3, BACKGROUND, tokenizer, 300, 800
    )


def test_the_background_stays_in_order(tokenizer):
    assert BACKGROUND == [
        "The grass is green today.",
        "The sky is blue.",
        "Was the sun yellow?",
        "Here we go, all of us!",
        "There and back again she ran.",
    ]
    text = babilong_at("qa2", 0, 1, BACKGROUND, tokenizer, 400, 401).context
    places = [BACKGROUND.index(s) for s in re.findall("|".join(map(re.escape, BACKGROUND)), text)]
    assert len(places) > 5 and all((b - a) % 5 == 1 for a, b in zip(places, places[1:], strict=False))


def test_stories_that_cannot_be_told(tokenizer):
    with pytest.raises(UserError, match="no task 'qa4': give one of qa1, qa2, qa3"):
        babilong_at("qa4", 0, 0, BACKGROUND, tokenizer, 300, 800)
    with pytest.raises(UserError, match="no background"):
        babilong_at("qa1", 0, 0, [], tokenizer, 300, 800)
    for low, high in ((1, 5), (800, 300)):
        with pytest.raises(UserError, match=f"{low} to {high} tokens"):
            babilong_at("qa1", 0, 0, BACKGROUND, tokenizer, low, high)
