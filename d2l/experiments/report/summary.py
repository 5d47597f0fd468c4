"""Numbers of a report: means and ratios with intervals, by context length, and what each method costs."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from d2l.experiments import intervals
from d2l.experiments.baselines.methods import METHODS
from d2l.experiments.intervals import Estimate
from d2l.experiments.items import read_items

Rows = list[dict[str, Any]]
TEACHER = "in_context"
COSTS = {
    "update_seconds": "update, s",
    "answer_seconds": "answer, s",
    "first_token_seconds": "first token, s",
    "update_peak_bytes": "peak memory while updating, MB",
    "answer_peak_bytes": "peak memory while answering, MB",
    "adapter_bytes": "adapter stored, MB",
    "kv_bytes": "KV cache stored, MB",
}


@dataclasses.dataclass(frozen=True)
class Results:
    """A run as read from its workdir.

    Attributes:
      config: of the run.
      suites: `{suite: {method: rows}}`; methods in the order of `METHODS`.
      not_run: why a method did not run.
    """

    config: dict[str, Any]
    suites: dict[str, dict[str, Rows]]
    not_run: dict[str, str]

    @property
    def metrics(self) -> list[str]:
        return list(self.config["metrics"])


def read_results(workdir: str | pathlib.Path) -> Results:
    """The results of a run, whole or not.

    Raises:
      UserError: the folder holds none.
    """
    items = read_items(workdir)
    workdir = pathlib.Path(workdir)
    config = json.loads((workdir / "config.json").read_text())
    not_run_file = workdir / "not_run.json"
    not_run = json.loads(not_run_file.read_text()) if not_run_file.exists() else {}

    def place(name: str) -> tuple[int, str]:
        kind = config["methods"][name].get("method", name)
        return list(METHODS).index(kind), name

    suites = {
        suite: {name: found[name] for name in sorted(found, key=place) if found[name]} for suite, found in items.items()
    }
    return Results(config, {suite: found for suite, found in suites.items() if found}, not_run)


def main_metric(suite: str, results: Results) -> str:
    """What plots and bins show: for needles whether the number is in the answer, else F1 where it was measured."""
    kind = results.config["suites"][suite].get("kind", suite)
    wanted = "recall" if kind == "needles" else "f1"
    return wanted if wanted in results.metrics else results.metrics[0]


def values(rows: Rows, metric: str) -> list[float]:
    return [row["scores"][metric] for row in rows]


def groups(rows: Rows) -> list[str]:
    return [row["group"] for row in rows]


def at_full_strength(rows: Rows) -> Rows:
    return [row for row in rows if row["scale"] == 1]


def mean(rows: Rows, metric: str) -> Estimate:
    """Mean of a metric, documents resampled whole."""
    return intervals.mean(values(rows, metric), groups(rows))


def ratio(rows: Rows, teacher: Rows, metric: str) -> Estimate | None:
    """Mean over that of in context on the same items; None where that one lacks items or its mean is 0."""
    by_item = {(row["case"], row["query"]): row for row in teacher}
    if any((row["case"], row["query"]) not in by_item for row in rows):
        return None
    same = [by_item[row["case"], row["query"]] for row in rows]
    estimate = intervals.ratio(values(rows, metric), values(same, metric), groups(rows))
    return None if math.isnan(estimate.value) else estimate


def by_length(rows: Rows, metric: str) -> dict[str, Estimate]:
    """Mean in every bin of context length."""
    bins = intervals.length_bins([row["length"] for row in rows])
    return {name: mean([rows[i] for i in indices], metric) for name, indices in bins.items()}


def cost(rows: Rows, name: str) -> float | None:
    """Mean seconds or stored bytes, or the largest peak; None where it could not be measured.

    The update counts once a case.
    """
    if name.startswith("update"):
        rows = [row for row in rows if row["query"] == 0]
    found = [row["measured"][name] if name in row["measured"] else row[name] for row in rows]
    known = [value for value in found if value is not None]
    if not known:
        return None
    return max(known) if "peak" in name else sum(known) / len(known)


def stored_bytes(rows: Rows) -> float:
    """Mean of adapter and KV cache together."""
    return cost(rows, "adapter_bytes") + cost(rows, "kv_bytes")


def each_kind(rows: Rows, key: Callable[[dict[str, Any]], Any]) -> dict[Any, Rows]:
    """Rows by what `key` gives, sorted."""
    found: dict[Any, Rows] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return dict(sorted(found.items()))


def shown(estimate: Estimate | None) -> str:
    """An estimate as text: value and 95 % interval."""
    if estimate is None:
        return "-"
    spread = "one document" if math.isnan(estimate.low) else f"{estimate.low:.3f} - {estimate.high:.3f}"
    return f"{estimate.value:.3f} ({spread})"


def shown_cost(name: str, value: float | None) -> str:
    """A cost in the unit of its column."""
    if value is None:
        return "not known"
    return f"{value / 1e6:,.1f}" if "bytes" in name else f"{value:,.3f}"


def shown_all(names: Sequence[str], rows: Rows) -> list[str]:
    return [shown_cost(name, cost(rows, name)) for name in names]
