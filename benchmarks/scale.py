"""Does it fit, and what bounds it? The tables of docs/scale.md.

    python -m benchmarks.scale                 compiles every case ahead of time (extra `aot`) and prints both tables
    python -m benchmarks.scale --growth        the formulas' table alone, in seconds

Compiling takes minutes a case on one core; each runs in a process of its own.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator

from d2l.cli_config import read_hypernet_config
from d2l.data.pack import Shapes
from d2l.experiments.growth import Model, step_cost, step_flops
from d2l.experiments.params import parameter_rows
from d2l.experiments.programs import stage_shapes
from d2l.target.shapes import target_shape
from d2l.train.chips import CHIPS
from d2l.train.sections import hypernet_config

CASES = (
    ("gemma2_2b_main", "v5e:4x4"),
    ("gemma2_2b_main", "v5e:8x8"),
    ("gemma2_2b_main", "v5p:2x2x2"),
    ("mistral_7b_main", "v5e:8x8"),
    ("mistral_7b_main", "v5e:16x16"),
    ("qwen3_4b_main", "v5e:8x8"),
    ("qwen3_4b_main", "v5e:16x16"),
)
NAMES = {"TPU v5 lite": "v5e", "TPU v5": "v5p"}
# Chip, chips, model axis.
SLICES = (
    ("TPU v5 lite", 16, 1),
    ("TPU v5 lite", 64, 1),
    ("TPU v5 lite", 64, 4),
    ("TPU v5 lite", 256, 4),
    ("TPU v5", 8, 1),
    ("TPU v5", 64, 1),
    ("TPU v5", 256, 4),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="of the compiled cases, those whose config or topology this names")
    parser.add_argument("--growth", action="store_true", help="only the table of the formulas")
    args = parser.parse_args()
    if not args.growth:
        for line in compiled_table(args.only):
            print(line, flush=True)
        print()
    print("\n".join(growth_table()))


# ---------------------------------------------------------------- compiled


def compiled_table(only: str) -> Iterator[str]:
    """One line for each case, as it is done: bytes of a chip, FLOPs, collectives, seconds to compile."""
    yield (
        "| config | chips | mesh data x fsdp x model | arguments | temporaries | bytes per chip | of | internalize "
        "| PFLOP a step | gathered | summed | compiled in |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for config, topology in CASES:
        if only not in f"{config} {topology}":
            continue
        command = [sys.executable, "-m", "d2l.cli", "aot", "--config", f"configs/{config}.py", "--topology", topology]
        print(*command[1:], file=sys.stderr, flush=True)
        done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, check=True, text=True)
        yield compiled_line(config, json.loads(done.stdout))


def compiled_line(config: str, report: dict) -> str:
    """A report of `d2l aot --json` as a table line; memory in GiB, collectives in GB a chip and step."""
    gathers = ("all-gather", "all-to-all", "collective-permute")
    moved = {kind: value["bytes"] / 1e9 for kind, value in report["collectives"].items()}
    gathered = sum(size for kind, size in moved.items() if kind in gathers)
    cells = [
        config,
        report["topology"],
        " x ".join(str(size) for size in report["mesh"].values()),
        *(f"{report[name] / 2**30:.2f}" for name in ("arguments", "temporaries", "bytes_per_chip", "hbm_bytes")),
        f"{report['internalize']['bytes_per_chip'] / 2**30:.2f}",
        f"{report['flops'] / 1e15:.2f}",
        f"{gathered:.1f}",
        f"{sum(moved.values()) - gathered:.1f}",
        f"{report['compile_seconds']:.0f} s",
    ]
    return f"| {' | '.join(cells)} |"


# ---------------------------------------------------------------- on paper


def growth_table() -> list[str]:
    """Seconds at the chips' peaks and bytes, as chips, context length and target grow."""
    lines = [
        "| config | context row | chip | chips | packs at once x model | PFLOP a step | compute | gather | exchange "
        "| GB a chip | bound by | gather = compute at rows of |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for config in ("gemma2_2b_main", "mistral_7b_main", "qwen3_4b_main"):
        fields = read_hypernet_config(f"configs/{config}.py", [])
        target = target_shape(fields["target"])
        model = Model(target, hypernet_config(fields["hypernet"], target))
        shapes = stage_shapes(fields, "one_chunk")
        params = tuple(count for part, _, count in parameter_rows(fields) if part in ("total", "target (frozen)"))
        for name, chips, model_axis in SLICES:
            lines.append(growth_line(config, model, shapes, fields["packs"], name, chips, model_axis, params))
        for times in (4, 16):
            longer = dataclasses.replace(shapes, ctx_tokens=times * shapes.ctx_tokens)
            lines.append(growth_line(config, model, longer, fields["packs"] // times, "TPU v5", 64, 4, params))
    return lines


def growth_line(
    config: str,
    model: Model,
    shapes: Shapes,
    packs: int,
    name: str,
    chips: int,
    model_axis: int,
    params: tuple[int, int],
) -> str:
    """One case of the formulas; packs beyond the chips' number are taken one after the other."""
    shards = min(chips // model_axis, packs)
    cost = step_cost(model, shapes, packs, CHIPS[name], shards=shards, model_axis=model_axis, params=params)
    flops = sum(step_flops(model, shapes, packs, remat=True, kl=True).values())
    cells = [
        config,
        f"{shapes.ctx_tokens:,}",
        NAMES[name],
        str(shards * model_axis),
        f"{shards} x {model_axis}",
        f"{flops / 1e15:.2f}",
        *(f"{seconds:.3f} s" for seconds in (cost.compute, cost.gather, cost.exchange)),
        f"{cost.held / 1e9:.1f}",
        cost.bound,
        # Parameters are gathered once a pack, however long; products and sums grow with its rows.
        f"{shapes.ctx_tokens * cost.gather / (cost.compute - cost.exchange):,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
