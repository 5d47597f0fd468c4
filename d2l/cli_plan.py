"""The commands that plan a run: `d2l params` and `d2l aot`. Both need shapes alone, no weights and no accelerator."""

import argparse
import json
from collections.abc import Callable

from d2l.cli_config import read_hypernet_config


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare them; `command(name, run, text, model=False)` makes the parser of one."""
    sub = command("params", params, "print the parameter table of a config", model=False)
    sub.add_argument("--config", required=True, help="configs/X.py; override fields as --config.lr=1e-4")

    sub = command("aot", aot, "compile a config for TPUs that are not here: bytes, FLOPs, collectives", model=False)
    sub.add_argument("--config", required=True, help="configs/X.py; override fields as --config.packs=32")
    sub.add_argument("--topology", required=True, help="chips, as v5e:4x4 or v5p:2x2x2")
    sub.add_argument("--stage", help="whose train step (default: the one of the most FLOPs)")
    sub.add_argument("--json", action="store_true", help="print JSON instead of a table")


def params(args: argparse.Namespace) -> None:
    from d2l.experiments.params import parameter_table

    print(parameter_table(read_hypernet_config(args.config, args.rest)))


def aot(args: argparse.Namespace) -> None:
    from d2l.experiments.aot import aot_report, aot_table

    report = aot_report(read_hypernet_config(args.config, args.rest), args.topology, stage=args.stage)
    print(json.dumps({"config": args.config} | report, indent=2) if args.json else aot_table(report))
