"""How far is our computation from the PyTorch release's, on a folder that the release computed?

    python -m benchmarks.release_parity FOLDER

FOLDER holds `base/` (the target), `pytorch_model.bin` and `io.safetensors` (inputs, and what the release computed in
float32). Prints the largest absolute error of features, lora, combined and logits as JSON; exits 1 above 1e-4.
"""

import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from d2l.adapter import Adapter, compose
from d2l.errors import UserError
from d2l.hypernet.features import context_features
from d2l.hypernet.hypernet import abstract_hypernet
from d2l.hypernet.release import check_target, read_release
from d2l.target.decoder import abstract_decoder
from d2l.target.weights import load_target

LIMIT = 1e-4


def parity(folder: str | pathlib.Path, *, iterative: bool = False) -> dict[str, float]:
    """Largest absolute error of each stage of the computation, all in float32.

    Every stage but the first works on our own output of the stage before, so that errors add up as they would in use.
    """
    folder = pathlib.Path(folder)
    try:
        io = safetensors.numpy.load_file(folder / "io.safetensors")
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder}/io.safetensors cannot be read ({error}): give a folder of that form.") from error
    config, params, _ = read_release(folder / "pytorch_model.bin")
    target = load_target(folder / "base")
    check_target(config, target.config)
    decoder = nnx.merge(abstract_decoder(target.config)[0], target.params)
    hypernet = nnx.merge(abstract_hypernet(config)[0], params)

    def error(ours: Any, name: str) -> float:
        return float(np.max(np.abs(np.asarray(ours, np.float64) - io[name]), initial=0.0))

    with jax.default_matmul_precision("highest"):
        mask_CT = io["in.ctx_attn_mask"].astype(bool)
        features = context_features(decoder, config, jnp.asarray(io["in.ctx_ids"], jnp.int32))
        # Beyond a chunk's own tokens nothing is read.
        seen = mask_CT[:, None, :, None] if features.ndim == 4 else mask_CT[:, :, None]
        errors = {"features": float(np.max(np.abs(np.asarray(features) - io["out.ctx_features"]) * seen))}

        chunks = hypernet(features, jnp.asarray(mask_CT), iterative=iterative)
        errors["lora"] = max(error(a, f"out.lora.{m}.{k}") for m, ab in chunks.items() for k, a in ab.items())

        counts_C = io["in.n_ctx_chunks"]
        factors, ranks = compose(
            chunks,
            jnp.asarray(np.repeat(np.arange(len(counts_C)), counts_C), jnp.int32),
            jnp.asarray(np.concatenate([np.arange(n) for n in counts_C]), jnp.int32),
            num_contexts=len(counts_C),
            max_chunks=int(counts_C.max()),
            bias=hypernet.bias(),
        )
        errors["combined"] = max(
            error(_pad(jnp.swapaxes(a, 0, 1), io[f"out.combined.{m}.{k}"]), f"out.combined.{m}.{k}")
            for m, ab in factors.items()
            for k, a in ab.items()
        )

        adapter = Adapter(factors, ranks, config.scale)
        rows_Q = np.repeat(np.arange(len(counts_C)), io["in.n_queries"])
        tokens_QT = jnp.asarray(io["in.input_ids"], jnp.int32)
        errors["logits"] = error(decoder(tokens_QT, adapter=adapter.select(rows_Q).for_decoder()), "out.logits")
        errors["base_logits"] = error(decoder(tokens_QT), "out.base_logits")
    return errors


def _pad(ours_CLRd: jax.Array, theirs: np.ndarray) -> jax.Array:
    """Zero rows up to the release's rank: without a learned bias it still leaves room for one."""
    return jnp.pad(ours_CLRd, ((0, 0), (0, 0), (0, theirs.shape[2] - ours_CLRd.shape[2]), (0, 0)))


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m benchmarks.release_parity FOLDER", file=sys.stderr)
        return 2
    try:
        errors = parity(sys.argv[1])
    except UserError as error:
        print(f"release_parity: {error}", file=sys.stderr)
        return 2
    print(json.dumps(errors, indent=2))
    return int(not all(error <= LIMIT for error in errors.values()))  # NaN fails too


if __name__ == "__main__":
    sys.exit(main())
