"""The commands that measure: `d2l eval`, of a config or of needles alone, and `d2l compare`."""

import argparse
import json
from collections.abc import Callable

from d2l.cli_config import read_config
from d2l.cli_model import load_model, pick_dtype
from d2l.cli_options import chunking, read_lengths
from d2l.errors import UserError


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare them; `command(name, run, text, ...)` makes the parser of one."""
    sub = command("eval", evaluate, "measure how well methods answer, and what they cost", document=True)
    sub.add_argument("--config", help="configs/eval_X.py; override fields as --config.max_new_tokens=16")
    sub.add_argument("--workdir", help="folder for answers and report of --config; the same command again resumes")
    sub.add_argument("--tasks", default="niah", help="without --config: the only one is niah")
    sub.add_argument("--methods", default="d2l,in_context,no_context")
    sub.add_argument("--lengths", default="32-256", help="ranges of tokens, as 32-256,1024-2048")
    sub.add_argument("--samples", type=int, default=200)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--json", action="store_true", help="print JSON instead of a table")

    sub = command("compare", compare, "put the reports of two evaluations side by side", model=False)
    sub.add_argument("runs", nargs=2, metavar="RUN", help="workdir of d2l eval --config")


def evaluate(args: argparse.Namespace) -> None:
    if args.config is None:
        if args.workdir is not None:
            raise UserError("--workdir goes with --config: give both, or --tasks niah with neither.")
        evaluate_needles(args)
        return
    if args.workdir is None:
        raise UserError("--config goes with --workdir: name the folder for answers and report.")
    from d2l.experiments.evaluate import evaluate as run

    fields = read_config(args.config, args.rest).to_dict()
    print(run(fields | {"dtype": pick_dtype(fields.get("dtype", "auto"))}, args.workdir))


def evaluate_needles(args: argparse.Namespace) -> None:
    """Exact match on fresh needles, as a table or JSON."""
    from d2l.experiments.niah import METHODS
    from d2l.experiments.niah import evaluate as evaluate_niah

    if args.tasks != "niah":
        raise UserError(f"there is no task {args.tasks!r}: the only one is niah; for others give --config.")
    methods = args.methods.split(",")
    if unknown := [name for name in methods if name not in METHODS]:
        raise UserError(f"there is no method {unknown[0]!r}: give some of {', '.join(METHODS)}.")
    lengths = read_lengths(args.lengths)
    rows = evaluate_niah(
        load_model(args, hypernet="d2l" in methods),
        methods=methods,
        lengths=lengths,
        samples=args.samples,
        seed=args.seed,
        **chunking(args),
    )
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'task':<6}{'method':<12}{'length':<16}{'n':>6}{'exact match':>13}{'contains':>10}  95 % interval")
    for row in rows:
        print(
            f"{row['task']:<6}{row['method']:<12}{row['length']:<16}{row['n']:>6}{row['exact_match']:>12.1%}"
            f"{row['contains']:>10.1%}   {row['low']:.1%} - {row['high']:.1%}"
        )


def compare(args: argparse.Namespace) -> None:
    from d2l.experiments.compare import compare as side_by_side
    from d2l.experiments.report.page import to_markdown

    print(to_markdown(side_by_side(*args.runs)), end="")
