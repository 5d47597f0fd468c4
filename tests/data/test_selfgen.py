"""Self-generation: the target's own answers, exactly; the same files however often it was stopped."""

import collections
import copy
import dataclasses
import hashlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from d2l.data import jsonl
from d2l.data.niah import NOISE
from d2l.data.record import Query, Record
from d2l.data.selfgen import parts, run
from d2l.data.selfgen import questions as questions_module
from d2l.data.selfgen.answers import CLOSED_QA
from d2l.data.selfgen.chat import Chat
from d2l.data.selfgen.config import SelfgenConfig
from d2l.data.selfgen.questions import ask_questions, parse_pairs
from d2l.data.selfgen.run import MANIFEST, THROUGHPUT, selfgen
from d2l.data.selfgen.sources import truncate_middle
from d2l.data.shards import Shards, write_records
from d2l.errors import UserError
from d2l.target.decoder import abstract_decoder
from d2l.target.prefix import Continuation
from d2l.target.weights import load_target

KEEP = SelfgenConfig(
    questions="keep", temperature=1.0, max_new_tokens=12, top_k=4, closed_qa=0.5, part_size=2, batch_tokens=600
)


@pytest.fixture(scope="module")
def target(target_folder):
    """A small random target that ends its answers: many tokens are end tokens."""
    loaded = load_target(target_folder)
    tokenizer = copy.copy(loaded.tokenizer)
    tokenizer.eos_ids = tuple(range(0, tokenizer.vocab_size, 6))
    return dataclasses.replace(loaded, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def chat(target):
    return Chat(target, KEEP.batch_tokens)


@pytest.fixture
def compiled_once(monkeypatch, chat):
    """Calls of `selfgen` share what they compile."""
    monkeypatch.setattr(run, "Chat", lambda model, batch_tokens: chat)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Five documents with two questions each, one of them larger than the window, and one without questions."""
    texts = [" ".join(NOISE[:n]) for n in (2, 5, 3, 4)] + ["The magic number is here. " * 200]
    queries = (Query("What is the number?", ("0042",)), Query("What is green?", ()))
    records = [Record(f"d{i}", text, queries, "noise", "train") for i, text in enumerate(texts)]
    path = tmp_path_factory.mktemp("records") / "questions.jsonl"
    jsonl.write_records(path, [*records, Record("silent", "Nothing.", (), "noise", "train")])
    return str(path)


def digests(folder):
    """Of all files but the one that holds seconds."""
    files = sorted(path for path in folder.iterdir() if path.name != THROUGHPUT)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_what_is_stored_is_what_the_target_says_with_the_document_in_its_prompt(
    target, questions, tmp_path, compiled_once
):
    manifest = selfgen([questions], tmp_path / "out", target, KEEP)
    shards = Shards(tmp_path / "out")
    assert shards.teacher == target.weights_hash
    assert (len(shards), manifest["given"]) == (5, {"documents": 6, "passages": 5, "truncated": 1})
    dropped = manifest["dropped"]
    assert dropped["documents without questions"] == 1
    assert manifest["queries"] == 10 - dropped["unfinished answer"] - dropped["empty answer"]
    assert json.loads((tmp_path / "out" / THROUGHPUT).read_text())["answer_tokens"] == manifest["response_tokens"]

    decoder = nnx.merge(abstract_decoder(target.config)[0], target.params)
    asked = [(record, query) for record in map(shards.__getitem__, range(5)) for query in record.queries]
    for record, query in asked[:3] + asked[-1:]:
        ids = [*target.tokenizer.document_turn(record.context, query.question), *query.teacher.response]
        logp = jax.nn.log_softmax(decoder(jnp.array([ids]))[0, -1 - len(query.teacher.response) : -1])
        expected, order = jax.lax.top_k(logp, 4)
        np.testing.assert_allclose(query.teacher.logp, expected, atol=2e-5)
        np.testing.assert_array_equal(query.teacher.tokens, order)
        assert query.teacher.response[-1] in target.tokenizer.eos_ids
    instructed = [query for _, query in asked if query.question.splitlines()[-1] in CLOSED_QA]
    assert 0 < len(instructed) < len(asked)
    for _, query in asked:  # references are kept; where there are none, the target's own answer is one
        own = target.tokenizer.decode(query.teacher.response[:-1].tolist()).strip()
        assert query.answers == (("0042",) if "number" in query.question else (own,))


def test_answers_without_an_end_are_kept_on_demand(target, questions, tmp_path, compiled_once):
    short = dataclasses.replace(KEEP, max_new_tokens=2, temperature=0.0)
    dropped = selfgen([questions], tmp_path / "drop", target, short)["dropped"]["unfinished answer"]
    manifest = selfgen([questions], tmp_path / "keep", target, dataclasses.replace(short, unfinished="keep"))
    assert dropped > 0 and manifest["dropped"]["unfinished answer"] == 0
    shards = Shards(tmp_path / "keep")
    said = [query.teacher.response for i in range(len(shards)) for query in shards[i].queries]
    cut = [response for response in said if response[-1] not in target.tokenizer.eos_ids]
    assert len(cut) == dropped and {len(response) for response in cut} == {2}
    with pytest.raises(UserError, match="unfinished is 'no': give one of drop, keep"):
        SelfgenConfig(unfinished="no")


def test_killed_anywhere_and_in_shards_it_writes_the_same_bytes(
    target, questions, tmp_path, monkeypatch, compiled_once
):
    selfgen([questions], tmp_path / "whole", target, KEEP)
    expected = digests(tmp_path / "whole")
    assert len(expected) == 3 and not list(tmp_path.glob("*.parts"))

    def collect(folder, shard=(0, 1)):
        return selfgen([questions], tmp_path / folder, target, KEEP, shard=shard)

    # Every start dies when it has written so many files: between parts, inside of one, before the manifest.
    write_file, left = parts.write_file, 0

    def write_or_die(path, data):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        write_file(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_file", write_or_die)
        patch.setattr(run, "write_file", write_or_die)
        for writes in (1, 3, 2, 1, 3):
            left = writes
            with pytest.raises(KeyboardInterrupt):
                collect("killed")
        left = 2
        collect("killed")
    assert digests(tmp_path / "killed") == expected

    assert collect("shards", (1, 2)) is None and collect("shards", (0, 2)) is None
    assert not (tmp_path / "shards").exists()
    assert collect("shards") == json.loads((tmp_path / "shards" / MANIFEST).read_text())
    assert digests(tmp_path / "shards") == expected
    with pytest.raises(UserError, match="config.seed 0, this command says 1"):
        selfgen([questions], tmp_path / "shards", target, dataclasses.replace(KEEP, seed=1))


def test_the_second_round_asks_about_other_parts_and_is_told_what_was_asked(tokenizer, monkeypatch):
    monkeypatch.setattr(questions_module, "STARTS", ("Question: What",))
    prompts = []

    class Scripted:
        """Replies by rote, where the questions of a model would depend on its weights."""

        def __init__(self):
            self.tokenizer = tokenizer

        def reply(self, read, asked, max_new_tokens, temperature, seed, *, starts):
            assert starts == ["Question: What"] * len(asked)
            prompts.append([question for _, question in asked])
            replies = [" of this is known here?\nAnswer: This.", f" is number {len(prompts)}?\nAnswer: One."]
            replies += [" no question", " is it, then?"]
            return [Continuation(tokenizer.encode(replies[place % 4]), ended=False) for place in range(len(asked))]

    text = " ".join(f"The number of part {i} is {i}." for i in range(8))
    dropped = collections.Counter()
    config = SelfgenConfig(per_round=4)
    questions, tokens = ask_questions(Scripted(), None, [text], config, np.random.default_rng(0), dropped)
    assert questions == [["What of this is known here?", "What is number 1?", "What is number 2?"]]
    assert dropped == {"malformed": 4, "duplicate": 1} and tokens > 0
    parts = [re.search("part ([0-9]) is", prompt)[1] for prompt in prompts[0] + prompts[1]]
    assert sorted(parts) == list("01234567")
    assert not any("What" in prompt for prompt in prompts[0])
    assert all("- What is number 1?" in prompt for prompt in prompts[1])


def test_a_model_that_asks_nothing_usable_is_named_an_error(target, chat, tmp_path, monkeypatch, compiled_once):
    monkeypatch.setattr(chat, "window", 4096)  # this tokenizer spells the instructions letter by letter
    (tmp_path / "text.txt").write_text(" ".join(NOISE[:2]))
    config = SelfgenConfig(per_round=1, passage_tokens=64, max_new_tokens=12, top_k=4)
    with pytest.raises(UserError, match="no question about 1 documents was answered"):
        selfgen([str(tmp_path / "text.txt")], tmp_path / "out", target, config)


def test_pairs_are_parsed_and_malformed_ones_counted():
    reply = """Here are the questions:

1. **Question:** Where was Marie Curie born?
The answer is: In Warsaw.

Question 2: When did she
move to Paris?
Answer: 1891

Question: "Who gave polonium its name?"

Possible answer:

"She did."

Q3. A statement, not a question.
A3. None

Question: Who shared the Nobel Prize in Physics?
- Question: Why?
Answer: Too short a question.
Question: What comes last?"""
    pairs, malformed = parse_pairs(reply)
    assert pairs == [
        ("Where was Marie Curie born?", "In Warsaw."),
        ("When did she move to Paris?", "1891"),
        ("Who gave polonium its name?", "She did."),
    ]
    assert malformed == 4
    assert parse_pairs("I cannot do that.") == ([], 0)


def test_a_text_over_the_window_loses_its_middle(tokenizer):
    text = " ".join(f"{i} sky" for i in range(100))
    short = truncate_middle(text, tokenizer, 50)
    assert 45 <= len(tokenizer.encode(short)) <= 50
    head, tail = short.split("\n")
    assert text.startswith(head) and text.endswith(tail) and abs(len(head) - len(tail)) < 12
    assert truncate_middle(text, tokenizer, 1000) == text


def test_bad_input_is_one_sentence(target, questions, tmp_path, compiled_once):
    def refuses(match, places, out="out", **changes):
        with pytest.raises(UserError, match=match):
            selfgen(places, tmp_path / out, target, dataclasses.replace(KEEP, **changes))

    (tmp_path / "empty").mkdir()
    refuses("none of 0 file", [str(tmp_path / "empty")])
    (tmp_path / "broken.jsonl").write_text('{"id": 1}\n')
    refuses("broken.jsonl, line 1", [str(tmp_path / "broken.jsonl")])
    write_records(tmp_path / "shards", jsonl.read_records(questions))
    refuses("the id 'd0' of noise", [questions, str(tmp_path / "shards")])
    (tmp_path / "text.txt").write_text("The grass is green.")
    refuses("none of 1 documents has a question to keep", [str(tmp_path / "text.txt")])
    begun = Record("1", "The grass is green.", (Query("What is it?", (" green.",), start="It is"),), "made", "train")
    jsonl.write_records(tmp_path / "begun.jsonl", [begun])
    refuses("begun.jsonl has answers that go on", [str(tmp_path / "begun.jsonl")])
    refuses("passage_tokens is 512, the windows leave", [str(tmp_path / "text.txt")], questions="generate")
    refuses("top_k is 9999", [questions], top_k=9999)
    refuses("holds no self-generated data", [questions], out="empty")
    with pytest.raises(UserError, match="closed_qa is 2"):
        dataclasses.replace(KEEP, closed_qa=2)
