"""Compiling ahead of time for TPUs that are not here: does a config fit, what does a step cost, what do chips exchange?

The compiler comes from `libtpu` (extra `aot`) and runs on this CPU. Weights and batches are shapes only.
"""

import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from d2l.errors import UserError
from d2l.experiments.hlo import collectives
from d2l.experiments.programs import internalize_program, largest_stage, model_flops, train_program
from d2l.mesh import make_mesh
from d2l.train.chips import CHIPS
from d2l.train.flops import count_flops

SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
TOPOLOGIES = {"v4": CUBES, "v5e": SQUARES, "v5p": CUBES, "v6e": SQUARES}


def aot_report(fields: dict[str, Any], topology: str, *, stage: str | None = None) -> dict[str, Any]:
    """Compile a config's train step, and internalizing with its hypernetwork, for a slice of TPUs.

    Args:
      fields: the config.
      topology: `v5e:4x4` and the like.
      stage: whose train step; default the one of the most FLOPs.

    Returns:
      `topology`, `chips`, `hbm_bytes` of one chip, `mesh`, `stage`, `context_tokens` that a step has room for,
      `model_flops` of a step, the fields of `compile_program` for the train step, and those for `internalize` under
      that name.

    Raises:
      UserError: an unknown topology or stage, no compiler, a mesh that does not divide, a program that does not fit.
    """
    devices = tpu_devices(topology)
    mesh = make_mesh(fields.get("mesh", {"data": -1}), devices)
    stage = largest_stage(fields) if stage is None else stage
    step, step_args, context_tokens = train_program(fields, stage, mesh)
    reader, reader_args = internalize_program(fields, mesh)
    return {
        "topology": topology,
        "chips": len(devices),
        "hbm_bytes": CHIPS[devices[0].device_kind].hbm_bytes,
        "mesh": dict(mesh.shape),
        "stage": stage,
        "context_tokens": context_tokens,
        "model_flops": model_flops(fields, stage),
        **compile_program(step, step_args, mesh),
        "internalize": compile_program(reader, reader_args, mesh),
    }


def tpu_devices(topology: str) -> list[jax.Device]:
    """Devices of a named slice; programs are compiled for them, nothing runs there.

    Raises:
      UserError: an unknown name, or the compiler is not installed or in use.
    """
    generation, _, shape = topology.partition(":")
    if shape not in TOPOLOGIES.get(generation, ()):
        known = "; ".join(f"{name}: {', '.join(shapes)}" for name, shapes in TOPOLOGIES.items())
        raise UserError(f"there is no topology {topology!r}: give one like v5e:4x4. Known are {known}.")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the TPU compiler is not installed: run `pip install 'd2l[aot]'`.")
    # No TPU is looked for: JAX runs on the CPU, and the compiler does not ask the cloud what machine this is.
    jax.config.update("jax_platforms", "cpu")
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3"}
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" in str(error):
            raise UserError(
                "another process on this machine uses the TPU compiler, which serves one at a time: wait for it."
            ) from error
        raise


def compile_program(function: Callable[..., Any], args: tuple[Any, ...], mesh: Mesh) -> dict[str, Any]:
    """Compile a jitted function for the devices that its abstract arguments are sharded over.

    Returns:
      Bytes of one chip (`arguments`, `results` that share no memory with them, `temporaries`, `code`, their sum
      `bytes_per_chip`), `flops` of all chips together, counted from shapes, `collectives` of one chip by kind, and
      `compile_seconds`.

    Raises:
      UserError: the program does not fit the chip's memory.
    """
    with jax.set_mesh(mesh):
        flops = count_flops(function, *args)
        began = time.monotonic()
        try:
            compiled = function.lower(*args).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            reason = " ".join(str(error).partition("RESOURCE_EXHAUSTED:")[2].split())[:300]
            raise UserError(
                f"the program does not fit one chip ({reason}): take more chips, a larger config.mesh.model, or "
                "smaller packs."
            ) from error
    memory = compiled.memory_analysis()
    # Not `temp_size_in_bytes`, which counts buffers that share their place again: it may exceed the chip's memory.
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.total_allocation_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    return parts | {
        "bytes_per_chip": sum(parts.values()),
        "flops": flops,
        "collectives": collectives(compiled.as_text()),
        "compile_seconds": round(time.monotonic() - began, 1),
    }


def aot_table(report: dict[str, Any]) -> str:
    """What `aot_report` returns, as text."""
    lines = [
        f"{report['chips']} chips {report['topology']}, mesh {report['mesh']}, stage {report['stage']}, "
        f"{report['context_tokens']:,} context tokens and {report['model_flops'] / 1e12:,.0f} model TFLOP a step",
        f"{'':<26}{'train step':>14}{'internalize':>14}",
    ]
    programs = (report, report["internalize"])
    for name in ("arguments", "results", "temporaries", "code", "bytes_per_chip"):
        lines.append(_line(f"{name}, GiB", [f"{program[name] / 2**30:.2f}" for program in programs]))
    lines.append(_line("of a chip's GiB", [f"{report['hbm_bytes'] / 2**30:.2f}"] * 2))
    lines.append(_line("TFLOP, all chips", [f"{program['flops'] / 1e12:,.1f}" for program in programs]))
    for kind in sorted({kind for program in programs for kind in program["collectives"]}):
        sizes = [program["collectives"].get(kind, {"bytes": 0})["bytes"] for program in programs]
        lines.append(_line(f"{kind}, GB a chip", [f"{size / 1e9:,.2f}" for size in sizes]))
    lines.append(_line("seconds to compile", [f"{program['compile_seconds']:,.0f}" for program in programs]))
    return "\n".join(lines)


def _line(name: str, cells: list[str]) -> str:
    return f"{name:<26}" + "".join(f"{cell:>14}" for cell in cells)
