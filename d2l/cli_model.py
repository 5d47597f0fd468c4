"""The model that a command's options name."""

import argparse
import pathlib
from typing import Any

from d2l.errors import UserError

CHECKPOINTS = pathlib.Path(__file__).parents[1] / "checkpoints"
DEFAULT_HYPERNET = CHECKPOINTS / "niah_smollm2"


def load_model(args: argparse.Namespace, *, hypernet: bool) -> Any:
    """The model of the command's options, with a hypernetwork where one is needed."""
    folder = None
    if hypernet:
        folder = args.hypernet or DEFAULT_HYPERNET
        if args.hypernet is None and not DEFAULT_HYPERNET.is_dir():
            raise UserError("the shipped hypernetwork is not beside the package: name one with --hypernet FOLDER.")
    import d2l

    return d2l.load(args.target, folder, ctx_encoder=args.ctx_encoder, dtype=pick_dtype(args.dtype))


def pick_dtype(name: str) -> str:
    """`auto` is bfloat16 on accelerators and on CPUs that multiply it in hardware, float32 elsewhere."""
    if name != "auto":
        return name
    import jax

    if jax.default_backend() != "cpu":
        return "bfloat16"
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return "float32"
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"
