"""Metrics equal the release's numbers and a second implementation of their definitions, on 200 stored pairs."""

import json
import pathlib
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2l.errors import UserError
from d2l.experiments.metrics import METRICS, contains, exact_match, score, token_kl, word_overlap, words

# Predictions and references with F1, precision and recall as the release computed them, and rouge-score's ROUGE-L.
PAIRS = [json.loads(line) for line in pathlib.Path(__file__).with_name("metric_pairs.jsonl").read_text().splitlines()]


def plain_words(text):
    """Letter by letter: what is a letter, a digit or a symbol beyond ASCII stays, punctuation becomes a space."""
    out = ""
    for letter in text.lower():
        kind = unicodedata.category(letter)
        if kind == "Cf":
            continue
        out += " " if kind[0] == "P" or (kind[0] == "S" and ord(letter) < 128) else letter
    return [word for word in out.split() if word not in ("a", "an", "the")]


def plain_overlap(prediction, reference):
    """Strike out each word of the reference that the prediction has left."""
    given, wanted = plain_words(prediction), plain_words(reference)
    left, common = list(given), 0
    for word in wanted:
        if word in left:
            left.remove(word)
            common += 1
    if not common:
        return 0.0, 0.0, 0.0
    return 2 * common / (len(given) + len(wanted)), common / len(given), common / len(wanted)


def plain_rouge_l(prediction, reference):
    """Longest common subsequence of stems by dynamic programming."""
    from nltk.stem.porter import PorterStemmer

    def stems(text):
        letters = "".join(letter if letter.isascii() and letter.isalnum() else " " for letter in text.lower())
        return [PorterStemmer().stem(word) if len(word) > 3 else word for word in letters.split()]

    a, b = stems(prediction), stems(reference)
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return 2 * table[-1, -1] / max(len(a) + len(b), 1)


@pytest.mark.parametrize("start", range(0, len(PAIRS), 50))
def test_stored_pairs(start):
    assert len(PAIRS) == 200
    for pair in PAIRS[start : start + 50]:
        prediction, references = pair["prediction"], pair["references"]
        ours = score(prediction, references)
        best = max((plain_overlap(prediction, reference) for reference in references), key=lambda scores: scores[0])
        for name, value in zip(("f1", "precision", "recall"), best, strict=True):
            assert ours[name] == pytest.approx(value, abs=1e-12) == pytest.approx(pair[name], abs=1e-12), pair
        rouge = max(plain_rouge_l(prediction, reference) for reference in references)
        assert ours["rouge_l"] == pytest.approx(rouge, abs=1e-12) == pytest.approx(pair["rouge_l"], abs=1e-12), pair
        exact = any(plain_words(prediction) == plain_words(reference) for reference in references)
        assert ours["exact_match"] == exact


def test_what_an_answer_contains_stands_in_it_word_after_word():
    assert contains("The special magic number for calm-otter is:6301845.", ["6301845"]) == 1
    assert contains("It is 111b7e13-25ce.", ["7", "111b7e13-25ce"]) == 1
    for prediction in ("63018456", "25ce 111b7e13", "6301 845", ""):
        assert contains(prediction, ["6301845", "111b7e13-25ce"]) == 0


def test_words_and_exact_match():
    assert words("The well-known “U.S.” café\u200b, an A/B test…") == ["well", "known", "u", "s", "café", "b", "test"]
    assert exact_match("the Eiffel Tower.", ["Louvre", "Eiffel tower"]) == 1
    assert exact_match("Tower Eiffel", ["Eiffel tower"]) == 0 < word_overlap("Tower Eiffel", ["Eiffel tower"]).f1
    with pytest.raises(UserError, match="no metric 'bleu'.*f1, precision"):
        score("x", ["x"], ["f1", "bleu"])
    for metric in METRICS:
        for references in ([], "text"):
            with pytest.raises(UserError, match="reference answers"):
                score("x", references, [metric])


def test_token_kl_against_float64():
    teacher, student = jax.random.normal(jax.random.key(0), (2, 5, 3, 40)) * 4
    teacher = teacher.at[..., 7].set(-jnp.inf)
    p, q = (np.exp(np.asarray(a, np.float64)) for a in (teacher, student))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    expected = np.where(p > 0, p * (np.log(np.where(p > 0, p, 1)) - np.log(q)), 0).sum(-1)
    np.testing.assert_allclose(token_kl(teacher, student), expected, rtol=1e-5, atol=1e-6)
    assert token_kl(teacher.astype(jnp.bfloat16), student).dtype == jnp.float32
    np.testing.assert_allclose(token_kl(teacher, teacher), 0, atol=1e-6)
