"""`report.md` and `report.html` of a run, from its items alone."""

import json
import logging
import pathlib

from d2l.experiments.report import summary
from d2l.experiments.report.page import Block, Figure, Heading, Paragraph, Table, to_html, to_markdown
from d2l.experiments.report.summary import TEACHER, Results, shown

MARKDOWN, HTML = "report.md", "report.html"
logger = logging.getLogger(__name__)


def write_report(workdir: pathlib.Path) -> pathlib.Path:
    """Write both reports and the plots of a run; returns where the Markdown is."""
    results = summary.read_results(workdir)
    try:
        from d2l.experiments.report.plots import draw_plots

        figures = draw_plots(results, workdir)
    except ImportError:
        logger.warning("the report has no plots: pip install 'd2l[report]' for matplotlib")
        figures = None
    blocks = make_blocks(results, figures)
    (workdir / MARKDOWN).write_text(to_markdown(blocks))
    (workdir / HTML).write_text(to_html("d2l eval", blocks))
    return workdir / MARKDOWN


def make_blocks(results: Results, figures: dict[str, list[Figure]] | None) -> list[Block]:
    """The whole report."""
    config = results.config
    blocks: list[Block] = [
        Heading("Evaluation", 1),
        Paragraph(
            f"Target {config['target'] or 'smollm2-135m-instruct'}, hypernetwork {config['hypernet'] or 'none'}, "
            f"{config['dtype']}, greedy answers of at most {config['max_new_tokens']} tokens. Values are means with "
            "95 % bootstrap intervals over documents. kl is the KL per token to the target with the documents in its "
            f"prompt ({TEACHER}), in nats."
        ),
    ]
    if figures is None:
        blocks.append(Paragraph("Plots are left out: matplotlib is not installed (the extra `report`)."))
    for suite, methods in results.suites.items():
        blocks += [Heading(f"Suite {suite}"), Paragraph(f"Options: `{json.dumps(config['suites'][suite])}`")]
        blocks += _quality(results, methods)
        blocks += _lengths(results, methods)
        blocks += _scales(results, methods)
        blocks += _costs(methods)
        blocks += (figures or {}).get(suite, [])
    if results.not_run:
        blocks += [
            Heading("Not run"),
            Table(("method", "why"), [(name, f"not run: {why}") for name, why in results.not_run.items()]),
        ]
    return blocks


def _quality(results: Results, methods: dict[str, summary.Rows]) -> list[Block]:
    plain = {name: summary.at_full_strength(rows) for name, rows in methods.items()}
    table = Table(
        ("method", "items", *results.metrics),
        [
            (name, str(len(rows)), *(shown(summary.mean(rows, metric)) for metric in results.metrics))
            for name, rows in plain.items()
        ],
    )
    if TEACHER not in plain:
        return [table]
    ratios = Table(
        ("ratio to in context", *results.metrics),
        [
            (name, *(shown(summary.ratio(rows, plain[TEACHER], metric)) for metric in results.metrics))
            for name, rows in plain.items()
        ],
    )
    return [table, ratios]


def _lengths(results: Results, methods: dict[str, summary.Rows]) -> list[Block]:
    blocks: list[Block] = []
    for metric in results.metrics:
        found = {name: summary.by_length(summary.at_full_strength(rows), metric) for name, rows in methods.items()}
        bins = sorted({b for per_bin in found.values() for b in per_bin}, key=lambda b: int(b.split("-")[0]))
        if len(bins) > 1:
            rows = [(name, *(shown(per_bin.get(b)) for b in bins)) for name, per_bin in found.items()]
            blocks.append(Table((f"{metric} by tokens", *bins), rows))
    return blocks


def _scales(results: Results, methods: dict[str, summary.Rows]) -> list[Block]:
    swept = {name: rows for name, rows in methods.items() if any(row["scale"] != 1 for row in rows)}
    rows = [
        (f"{name} x {factor:g}", *(shown(summary.mean(part, metric)) for metric in results.metrics))
        for name, all_rows in swept.items()
        for factor, part in summary.each_kind(all_rows, lambda row: row["scale"]).items()
    ]
    return [Table(("adapter scale", *results.metrics), rows)] if rows else []


def _costs(methods: dict[str, summary.Rows]) -> list[Block]:
    table = Table(
        ("cost", *summary.COSTS.values()),
        [
            (name, *summary.shown_all(list(summary.COSTS), summary.at_full_strength(rows)))
            for name, rows in methods.items()
        ],
    )
    blocks: list[Block] = [table]
    for name, rows in methods.items():
        if cut := [row["cut_tokens"] for row in rows if row["cut_tokens"]]:
            blocks.append(
                Paragraph(
                    f"{name}: {len(cut)} of {len(rows)} prompts were cut in the middle of their documents to fit the "
                    f"window, by {sum(cut) / len(cut):,.0f} tokens on average."
                )
            )
    return blocks
