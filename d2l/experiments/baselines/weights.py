"""Trained weights of a baseline: one safetensors file, every tensor's shape checked."""

import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from d2l.errors import UserError
from d2l.experiments.baselines.face import NotRun


def load_weights(path: str, shapes: Mapping[str, tuple[int, ...]], what: str) -> dict[str, jax.Array]:
    """The tensors of a file, float32.

    Args:
      path: "" where there are none.
      shapes: of every tensor by name.
      what: whose weights they are.

    Raises:
      NotRun: `path` is "".
      UserError: the file cannot be read, or a tensor is missing, left over or of another shape.
    """
    if not path:
        raise NotRun(f"no weights of {what} are published for this target: give a file of your own as `weights`.")
    try:
        tensors = safetensors.numpy.load_file(pathlib.Path(path))
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"the weights of {what} in {path} cannot be read ({error}): give a safetensors file."
        ) from error
    if odd := sorted(tensors.keys() ^ shapes.keys()):
        raise UserError(f"{path} lacks or has too many weights of {what}: {', '.join(odd[:5])}.")
    for name, shape in shapes.items():
        if (found := tensors[name].shape) != shape:
            raise UserError(f"{name} in {path} has shape {found}, {what} for this target asks for {shape}.")
    return {name: jnp.asarray(tensor.astype(np.float32)) for name, tensor in tensors.items()}
