"""How sure a mean is: bootstrap intervals of means and of ratios, and bins by context length.

Questions about one document stand or fall together, so whole documents are resampled, not questions.
"""

import dataclasses
import itertools
from collections.abc import Hashable, Sequence

import numpy as np

from d2l.errors import UserError

RESAMPLES = 2000
# Starts of the bins of context length in tokens; the last one is open.
LENGTH_EDGES = (0, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean or a ratio of means.

    Attributes:
      low, high: ends of its 95 % interval; NaN where all items are about one document, which says nothing of others.
      n: items behind it.
    """

    value: float
    low: float
    high: float
    n: int


def mean(values: Sequence[float], groups: Sequence[Hashable] | None = None, seed: int = 0) -> Estimate:
    """Mean with its percentile bootstrap interval.

    Args:
      values: one score per item.
      groups: document of each item, resampled whole; None treats every item as a document of its own.
      seed: of the resampling.

    Raises:
      UserError: no items, or not one group per item.
    """
    sums, counts = _by_group(values, groups)
    weights = _resamples(len(sums), seed)
    return _estimate(sums.sum() / counts.sum(), (weights @ sums) / (weights @ counts), len(values), len(sums))


def ratio(
    values: Sequence[float], baseline: Sequence[float], groups: Sequence[Hashable] | None = None, seed: int = 0
) -> Estimate:
    """Mean of `values` over mean of `baseline`, both of the same items, resampled together.

    A baseline whose mean is 0 has no ratio: the estimate is NaN. Resamples that leave it at 0 count as infinite.

    Args:
      values, baseline: scores of a method and of in context, item by item.
      groups, seed: as in `mean`.

    Raises:
      UserError: no items, or sequences of different lengths.
    """
    if len(values) != len(baseline):
        raise UserError(f"{len(values)} values against {len(baseline)} of the baseline: score the same items.")
    tops, _ = _by_group(values, groups)
    bottoms, _ = _by_group(baseline, groups)
    if bottoms.sum() == 0:
        return Estimate(np.nan, np.nan, np.nan, len(values))
    weights = _resamples(len(tops), seed)
    top, bottom = weights @ tops, weights @ bottoms
    drawn = np.divide(top, bottom, out=np.full_like(top, np.inf), where=bottom != 0)
    return _estimate(tops.sum() / bottoms.sum(), drawn, len(values), len(tops))


def length_bins(lengths: Sequence[int], edges: Sequence[int] = LENGTH_EDGES) -> dict[str, np.ndarray]:
    """Items by context length: `{"128-255": indices}` in order of length, without empty bins; the last is `32768-`.

    Raises:
      UserError: a length below the first edge.
    """
    which = np.digitize(np.asarray(lengths), edges) - 1
    if np.any(which < 0):
        raise UserError(f"a context of {min(lengths)} tokens is below {edges[0]}, the start of the first bin.")
    names = [f"{start}-{end - 1}" for start, end in itertools.pairwise(edges)] + [f"{edges[-1]}-"]
    bins = {name: np.flatnonzero(which == i) for i, name in enumerate(names)}
    return {name: indices for name, indices in bins.items() if len(indices)}


def _by_group(values: Sequence[float], groups: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count of the values of every group, float64 `[G]` each."""
    if not len(values):
        raise UserError("there are no items to average: score at least one.")
    if groups is None:
        return np.asarray(values, np.float64), np.ones(len(values))
    if len(groups) != len(values):
        raise UserError(f"{len(values)} values in {len(groups)} groups: give the group of every value.")
    places = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    which = [places[group] for group in groups]
    return np.bincount(which, np.asarray(values, np.float64)), np.bincount(which).astype(np.float64)


def _resamples(groups: int, seed: int) -> np.ndarray:
    """How often each resample draws each group, float64 `[RESAMPLES, groups]`."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES).astype(np.float64)


def _estimate(value: float, drawn: np.ndarray, n: int, groups: int) -> Estimate:
    if groups == 1:
        return Estimate(float(value), np.nan, np.nan, n)
    # Observed order statistics: interpolation between an infinite ratio and a finite one is not a number.
    low, high = np.quantile(drawn, (0.025, 0.975), method="inverted_cdf")
    return Estimate(float(value), float(low), float(high), n)
