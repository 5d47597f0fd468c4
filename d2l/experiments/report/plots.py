"""Plots of a report: needle length x depth, quality against bytes and against update seconds, quality by length.

matplotlib comes with the extra `report`.
"""

import pathlib
from collections.abc import Callable

from d2l.experiments.report import summary
from d2l.experiments.report.page import Figure
from d2l.experiments.report.summary import Results, Rows

DPI = 110


def draw_plots(results: Results, folder: pathlib.Path) -> dict[str, list[Figure]]:
    """Write all plots of a run as PNG files into `folder`, by suite.

    Raises:
      ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    found: dict[str, list[Figure]] = {}
    for suite, methods in results.suites.items():
        metric = summary.main_metric(suite, results)
        plain = {name: summary.at_full_strength(rows) for name, rows in methods.items()}
        plots: list[tuple[str, str, Callable]] = [
            ("bytes", f"{metric} against bytes stored", lambda ax, m=metric, p=plain: _against_bytes(ax, p, m)),
            ("seconds", f"{metric} against update seconds", lambda ax, m=metric, p=plain: _against_seconds(ax, p, m)),
            ("length", f"{metric} by context length", lambda ax, m=metric, p=plain: _by_length(ax, p, m)),
        ]
        if any(row["scale"] != 1 for rows in methods.values() for row in rows):
            plots.append(("scale", f"{metric} by adapter scale", lambda ax, m=metric, p=methods: _by_scale(ax, p, m)))
        found[suite] = [_draw(folder / f"{suite}_{key}.png", f"{suite}: {title}", fill) for key, title, fill in plots]
        if any(row["depth"] is not None for rows in methods.values() for row in rows):
            found[suite].append(_heatmaps(folder / f"{suite}_heatmap.png", suite, plain, metric))
    return found


def _draw(path: pathlib.Path, title: str, fill: Callable) -> Figure:
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    fill(ax)
    ax.set_title(title, fontsize=10)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))  # beside the axes: it hides no point
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)
    return Figure(path, title)


def _against_bytes(ax, methods: dict[str, Rows], metric: str) -> None:
    for name, rows in methods.items():
        _point(ax, summary.stored_bytes(rows) / 1e6, summary.mean(rows, metric), name)
    ax.set(xlabel="adapter and KV cache stored, MB", ylabel=metric, xscale="log")


def _against_seconds(ax, methods: dict[str, Rows], metric: str) -> None:
    for name, rows in methods.items():
        _point(ax, summary.cost(rows, "update_seconds"), summary.mean(rows, metric), name)
    ax.set(xlabel="seconds to update on the documents", ylabel=metric, xscale="log")


def _point(ax, x: float, y: summary.Estimate, label: str) -> None:
    ax.errorbar([x], [y.value], yerr=[[y.value - y.low], [y.high - y.value]], fmt="o", capsize=3, label=label)


def _by_length(ax, methods: dict[str, Rows], metric: str) -> None:
    names = sorted(
        {name for rows in methods.values() for name in summary.by_length(rows, metric)},
        key=lambda name: int(name.split("-")[0]),
    )
    items = dict.fromkeys(names, 0)
    for label, rows in methods.items():
        found = summary.by_length(rows, metric)
        items |= {name: max(items[name], estimate.n) for name, estimate in found.items()}
        here = [name for name in names if name in found]
        _line(ax, [names.index(name) for name in here], [found[name] for name in here], label)
    ax.set_xticks(range(len(names)), [f"{name}\n{items[name]} items" for name in names], fontsize=8)
    ax.set(xlabel="tokens of the documents", ylabel=metric)


def _by_scale(ax, methods: dict[str, Rows], metric: str) -> None:
    for label, rows in methods.items():
        found = {k: summary.mean(part, metric) for k, part in summary.each_kind(rows, lambda r: r["scale"]).items()}
        _line(ax, list(found), list(found.values()), label)
    ax.set(xlabel="adapter scale", ylabel=metric)


def _line(ax, x: list[float], y: list[summary.Estimate], label: str) -> None:
    spread = [[e.value - e.low for e in y], [e.high - e.value for e in y]]
    ax.errorbar(x, [e.value for e in y], yerr=spread, marker="o", capsize=3, label=label)


def _heatmaps(path: pathlib.Path, suite: str, methods: dict[str, Rows], metric: str) -> Figure:
    """A map of length bin x depth for every method."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(methods), figsize=(0.6 + 3.0 * len(methods), 3.4), layout="constrained", squeeze=False, sharey=True
    )
    for ax, (name, rows) in zip(axes[0], methods.items(), strict=True):
        by_depth = summary.each_kind(rows, lambda row: row["depth"])
        bins = list(summary.by_length(rows, metric))
        grid = []
        for part in by_depth.values():
            found = summary.by_length(part, metric)
            grid.append([found[b].value if b in found else float("nan") for b in bins])
        image = ax.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        ax.set_xticks(range(len(bins)), bins, rotation=45, fontsize=7)
        ax.set_yticks(range(len(by_depth)), [f"{depth:.0%}" for depth in by_depth], fontsize=7)
        ax.set_title(name, fontsize=9)
        ax.set_xlabel("tokens", fontsize=8)
    axes[0, 0].set_ylabel("depth of the needle", fontsize=8)
    figure.colorbar(image, ax=axes[0].tolist(), label=metric)
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)
    return Figure(path, f"{suite}: {metric} by length and depth")
