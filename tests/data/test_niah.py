"""Needles: lengths, depth, determinism, files."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2l.data.niah import (
    NEEDLE,
    NOISE,
    exact_match,
    haystack,
    make_needle,
    needle_at,
    wilson_interval,
    write_dataset,
)
from d2l.errors import UserError


@settings(max_examples=60, deadline=None)
@given(low=st.integers(0, 400), width=st.integers(0, 300), seed=st.integers(0, 1000))
def test_lengths_stay_in_their_range(tokenizer, low, width, seed):
    high = max(low + width, 16)
    needle = make_needle(np.random.default_rng(seed), tokenizer, low, high)
    assert needle.length == len(tokenizer.encode(needle.document)) <= high
    if width >= 10 and low >= 16:  # a noise sentence has at most 8 tokens
        assert needle.length >= low
    assert NEEDLE.format(needle.answer) in needle.document.splitlines()
    assert len(needle.answer) == 4 and needle.answer.isdecimal()
    noise = [line for line in needle.document.splitlines() if line != NEEDLE.format(needle.answer)]
    assert set(" ".join(noise).replace(". ", ".|").split("|")) <= {*NOISE, ""}


@pytest.mark.parametrize(("depth", "place"), [(0.0, 0), (0.5, 10), (1.0, 20)])
def test_depth_is_where_the_needle_stands(depth, place):
    lines = haystack("0042", 20, 0, depth).splitlines()
    assert lines.index(NEEDLE.format("0042")) == place


def test_all_depths_and_lengths_are_drawn(tokenizer):
    needles = [needle_at(0, i, tokenizer, 32, 256) for i in range(300)]
    depths = np.array([n.depth for n in needles])
    lengths = np.array([n.length for n in needles])
    assert len({n.answer for n in needles}) > 280
    assert np.histogram(depths, bins=4, range=(0, 1))[0].min() > 50
    assert np.histogram(lengths, bins=4, range=(32, 256))[0].min() > 50


def test_a_pure_function_of_seed_and_index(tokenizer):
    assert needle_at(3, 7, tokenizer, 32, 256) == needle_at(3, 7, tokenizer, 32, 256)
    assert needle_at(3, 7, tokenizer, 32, 256) != needle_at(4, 7, tokenizer, 32, 256)
    trained_on = make_needle(np.random.default_rng((3, 7)), tokenizer, 32, 256)
    assert needle_at(3, 7, tokenizer, 32, 256) != trained_on


def test_impossible_ranges_are_named(tokenizer):
    for low, high in ((0, 3), (100, 50)):
        with pytest.raises(UserError, match=f"{low} to {high} tokens"):
            make_needle(np.random.default_rng(0), tokenizer, low, high)


def test_dataset_file(tokenizer, tmp_path):
    path = tmp_path / "needles.jsonl"
    write_dataset(path, tokenizer, samples=5, min_tokens=32, max_tokens=64, seed=1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["answer"] for row in rows] == [needle_at(1, i, tokenizer, 32, 64).answer for i in range(5)]
    before = path.read_bytes()
    with pytest.raises(UserError):
        write_dataset(path, tokenizer, samples=5, min_tokens=1, max_tokens=2, seed=1)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["needles.jsonl"]
    with pytest.raises(UserError, match="cannot write"):
        write_dataset(tmp_path / "no" / "x.jsonl", tokenizer, samples=1, min_tokens=32, max_tokens=64, seed=1)


def test_exact_match_is_strict():
    assert exact_match(" 0042.\n", "0042") and exact_match("0042", "0042")
    for wrong in ("42", "00421", "It is 0042", "", "0042 0042"):
        assert not exact_match(wrong, "0042")


def test_wilson_interval_against_known_values():
    low, high = wilson_interval(95, 100)
    assert (low, high) == (pytest.approx(0.8882, abs=1e-4), pytest.approx(0.9785, abs=1e-4))
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)
