"""How far is our computation from the PyTorch release's, on a folder that the release computed?

    python -m benchmarks.release_parity FOLDER

FOLDER holds `base/` (the target), `pytorch_model.bin` and `io.safetensors` (inputs, and what the release computed in
float32); if another model than the target reads the documents, also a folder of that model's name. Prints the largest
absolute error of features, lora, combined and logits as JSON; exits 1 above 1e-4, 2 with a sentence on bad input.
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
from d2l.hypernet.features import check_encoder, context_features
from d2l.hypernet.hypernet import abstract_hypernet
from d2l.hypernet.release import check_target, read_release
from d2l.target.decoder import abstract_decoder
from d2l.target.weights import LoadedTarget, load_target

LIMIT = 1e-4
INPUTS = ("in.ctx_ids", "in.ctx_attn_mask", "in.input_ids", "in.n_ctx_chunks", "in.n_queries")


def parity(folder: str | pathlib.Path, *, iterative: bool = False) -> dict[str, float]:
    """Largest absolute error of each stage of the computation, all in float32.

    Every stage but the first works on our own output of the stage before, so that errors add up as they would in use.
    """
    folder = pathlib.Path(folder)
    io = _read_io(folder)
    config, params, about = read_release(folder / "pytorch_model.bin")
    target = _load(folder / "base")
    check_target(config, target.config)
    decoder = nnx.merge(abstract_decoder(target.config)[0], target.params)
    encoder = decoder
    if about["ctx_encoder"] is not None:
        other = _load(folder / pathlib.Path(about["ctx_encoder"]).name)
        encoder = nnx.merge(abstract_decoder(other.config)[0], other.params)
    check_encoder(config, encoder.config)
    for name, size in (("in.ctx_ids", encoder.config.vocab_size), ("in.input_ids", target.config.vocab_size)):
        if not 0 <= io[name].min(initial=0) <= io[name].max(initial=0) < size:
            raise UserError(f"{name} in {folder}/io.safetensors has token ids outside 0..{size - 1}: give the model's.")
    if left := {name.split(".")[2] for name in io if name.startswith("out.lora.")} - set(config.target_modules):
        raise UserError(f"{folder}/io.safetensors has adapters of {', '.join(sorted(left))}, the checkpoint has none.")
    hypernet = nnx.merge(abstract_hypernet(config)[0], params)

    def error(ours: Any, name: str) -> float:
        if name not in io or io[name].shape != ours.shape:
            found = f"shape {io[name].shape}" if name in io else "nothing"
            raise UserError(f"{folder}/io.safetensors has {found} for {name}, expected was shape {ours.shape}.")
        return float(np.max(np.abs(np.asarray(ours, np.float64) - io[name]), initial=0.0))

    with jax.default_matmul_precision("highest"):
        # Chunks are read padded on the right, whatever side the folder pads.
        order_CT = np.argsort(io["in.ctx_attn_mask"] == 0, axis=1, kind="stable")
        mask_CT = np.take_along_axis(io["in.ctx_attn_mask"], order_CT, 1).astype(bool)
        ids_CT = np.take_along_axis(io["in.ctx_ids"], order_CT, 1)
        features = context_features(encoder, config, jnp.asarray(ids_CT, jnp.int32))
        name = "out.ctx_features"
        if name in io and io[name].shape == features.shape:
            # The release's values are moved alike; beyond a chunk's own tokens nothing is read.
            middle = (1,) * (features.ndim - 3)
            theirs = np.take_along_axis(io[name], order_CT.reshape(len(order_CT), *middle, -1, 1), -2)
            io[name] = np.where(mask_CT.reshape(len(mask_CT), *middle, -1, 1), theirs, np.asarray(features))
        errors = {"features": error(features, name)}

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
        # Without a learned bias the release still leaves room for one.
        room = ((0, 0), (0, 0), (0, 0 if config.use_bias else config.rank), (0, 0))
        errors["combined"] = max(
            error(jnp.pad(jnp.swapaxes(a, 0, 1), room), f"out.combined.{m}.{k}")
            for m, ab in factors.items()
            for k, a in ab.items()
        )

        adapter = Adapter(factors, ranks, config.scale)
        rows_Q = np.repeat(np.arange(len(counts_C)), io["in.n_queries"])
        tokens_QT = jnp.asarray(io["in.input_ids"], jnp.int32)
        errors["logits"] = error(decoder(tokens_QT, adapter=adapter.select(rows_Q).for_decoder()), "out.logits")
        errors["base_logits"] = error(decoder(tokens_QT), "out.base_logits")
    return errors


def _read_io(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The folder's inputs and the release's outputs; the inputs are checked against each other."""
    try:
        io = safetensors.numpy.load_file(folder / "io.safetensors")
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder}/io.safetensors cannot be read ({error}): give a folder of that form.") from error
    missing = [name for name in INPUTS if name not in io]
    if missing:
        raise UserError(f"{folder}/io.safetensors lacks {', '.join(missing)}: give a folder of that form.")
    ids, mask, tokens, chunks, queries = (io[name] for name in INPUTS)
    if not (
        ids.ndim == tokens.ndim == 2
        and ids.shape == mask.shape
        and mask.any(axis=1).all()
        and chunks.ndim == 1
        and chunks.shape == queries.shape
        and chunks.sum() == len(ids)
        and queries.sum() == len(tokens)
        and chunks.min(initial=1) > 0 <= queries.min(initial=0)
    ):
        raise UserError(
            f"the inputs in {folder}/io.safetensors do not fit each other "
            f"({', '.join(f'{name} {io[name].shape}' for name in INPUTS)}): give a folder of that form."
        )
    return io


def _load(folder: pathlib.Path) -> LoadedTarget:
    """The model of a folder; a folder that is missing is not looked for on the hub."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give a folder of that form.")
    return load_target(folder)


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
