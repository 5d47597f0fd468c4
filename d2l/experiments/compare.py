"""`d2l compare`: the reports of two runs side by side, method by method."""

import pathlib

from d2l.experiments import intervals
from d2l.experiments.report import summary
from d2l.experiments.report.page import Block, Heading, Paragraph, Table
from d2l.experiments.report.summary import Results, Rows, shown


def compare(first: str | pathlib.Path, second: str | pathlib.Path) -> list[Block]:
    """What two runs have in common, and how they differ.

    The difference has an interval where both answered the same items: they are resampled together.

    Raises:
      UserError: a folder holds no evaluation.
    """
    one, two = summary.read_results(first), summary.read_results(second)
    names = [str(first), str(second)]
    blocks: list[Block] = [Heading(f"{names[0]} and {names[1]}", 1)]
    for suite in dict.fromkeys((*one.suites, *two.suites)):
        blocks.append(Heading(f"Suite {suite}"))
        sides = [results.suites.get(suite, {}) for results in (one, two)]
        for method in dict.fromkeys((*sides[0], *sides[1])):
            parts = [summary.at_full_strength(side.get(method, [])) for side in sides]
            if not all(parts):
                blocks.append(Paragraph(f"{method}: only in {names[0] if parts[0] else names[1]}."))
                continue
            metrics = [metric for metric in one.metrics if metric in two.metrics]
            rows = [_quality(metric, *parts) for metric in metrics]
            rows += [_cost(name, *parts) for name in summary.COSTS]
            blocks.append(Table((method, *names, "second - first"), rows))
    for name, results in zip(names, (one, two), strict=True):
        blocks += _not_run(name, results)
    return blocks


def _quality(metric: str, first: Rows, second: Rows) -> tuple[str, ...]:
    values = [summary.mean(rows, metric) for rows in (first, second)]
    if [_item(row) for row in first] == [_item(row) for row in second]:
        pairs = zip(summary.values(first, metric), summary.values(second, metric), strict=True)
        difference = shown(intervals.mean([b - a for a, b in pairs], summary.groups(first)))
    else:
        difference = f"{values[1].value - values[0].value:.3f} (other items)"
    return (metric, *map(shown, values), difference)


def _cost(name: str, first: Rows, second: Rows) -> tuple[str, ...]:
    values = [summary.cost(rows, name) for rows in (first, second)]
    known = None not in values
    difference = summary.shown_cost(name, values[1] - values[0]) if known else "not known"
    return (summary.COSTS[name], *(summary.shown_cost(name, value) for value in values), difference)


def _item(row: dict) -> tuple:
    return row["case"], row["question"], row["references"]


def _not_run(name: str, results: Results) -> list[Block]:
    return [Paragraph(f"{name}: {method} was not run: {why}") for method, why in results.not_run.items()]
