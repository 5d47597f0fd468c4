"""Bootstrap intervals: coverage, documents resampled whole, ratios; bins by length."""

import math

import numpy as np
import pytest

from d2l.errors import UserError
from d2l.experiments.intervals import length_bins, mean, ratio
from d2l.experiments.report.summary import shown


def test_mean_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    intervals = [mean(rng.binomial(1, 0.7, 120).astype(float), seed=i) for i in range(100)]
    assert 88 <= sum(e.low <= 0.7 <= e.high for e in intervals) <= 99
    assert all(e.low < e.value < e.high and e.n == 120 for e in intervals)
    assert mean([1.0, 1.0, 1.0]).low == mean([1.0, 1.0, 1.0]).high == 1
    assert mean([0.0, 1.0], seed=3) == mean([0.0, 1.0], seed=3)


def test_documents_are_resampled_whole():
    values = np.repeat(np.random.default_rng(1).binomial(1, 0.5, 40), 10).astype(float)  # ten equal answers a document
    groups = np.repeat(np.arange(40), 10)
    alone, together = mean(values), mean(values, [f"doc{g}" for g in groups])
    assert alone.value == together.value and alone.n == together.n == 400
    factor = (together.high - together.low) / (alone.high - alone.low)
    assert factor == pytest.approx(math.sqrt(10), rel=0.2)
    # A document's share follows its number of questions.
    assert mean([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]).value == 0.75
    # One document alone says nothing of others.
    one = mean([1.0, 0.0, 1.0], ["a"] * 3)
    assert one.n == 3 and math.isnan(one.low) and math.isnan(one.high)
    assert shown(one) == "0.667 (one document)"


def test_ratio_is_of_means_of_the_same_items():
    rng = np.random.default_rng(2)
    baseline = rng.uniform(0.2, 1, 200)
    estimate = ratio(0.8 * baseline, baseline)
    assert (estimate.value, estimate.low, estimate.high) == (pytest.approx(0.8),) * 3  # paired: the noise cancels
    loose = ratio(0.8 * rng.permutation(baseline), baseline)
    assert loose.low < loose.value < loose.high and loose.value == pytest.approx(0.8)
    assert math.isnan(ratio([1.0, 0.0], [0.0, 0.0]).value)
    rare = ratio([1.0, 1.0, 1.0], [1.0, 0.0, 0.0])  # a resample of three often misses the one answer of the baseline
    assert rare.value == 3 and rare.high == math.inf


def test_bins_by_length():
    bins = length_bins([0, 127, 128, 40_000, 300, 511])
    assert {name: list(indices) for name, indices in bins.items()} == {
        "0-127": [0, 1],
        "128-255": [2],
        "256-511": [4, 5],
        "32768-": [3],
    }
    assert list(length_bins([3, 9], edges=(2, 8))) == ["2-7", "8-"]


def test_what_cannot_be_averaged_is_named():
    with pytest.raises(UserError, match="no items"):
        mean([])
    with pytest.raises(UserError, match="2 values in 1 groups"):
        mean([1.0, 0.0], ["a"])
    with pytest.raises(UserError, match="2 values against 1"):
        ratio([1.0, 0.0], [1.0])
    with pytest.raises(UserError, match="below 2"):
        length_bins([1], edges=(2, 8))
