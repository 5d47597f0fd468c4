"""A trained hypernetwork on disk: `hypernet.json` and `hypernet.safetensors`."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from d2l.errors import UserError
from d2l.files import atomic_folder
from d2l.hypernet.config import HypernetConfig
from d2l.hypernet.hypernet import abstract_hypernet

FORMAT = "d2l-hypernet-1"


def save_hypernet(
    folder: str | pathlib.Path,
    config: HypernetConfig,
    params: Any,
    *,
    target_name: str,
    target_hash: str,
    card: dict[str, Any],
    dtype: jnp.dtype = jnp.float32,
) -> None:
    """Write a hypernetwork in `dtype`, with the target it was trained for and a card of how.

    Raises:
      UserError: the folder cannot be written; an earlier one there stays whole.
    """
    tensors = {}
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        tensors[".".join(key.key for key in path)] = np.asarray(array.astype(dtype))
    description = {
        "format": FORMAT,
        "target": {"name": target_name, "weights_hash": target_hash},
        "config": dataclasses.asdict(config),
        "card": card,
    }
    with atomic_folder(folder) as new:
        safetensors.numpy.save_file(tensors, new / "hypernet.safetensors")
        (new / "hypernet.json").write_text(json.dumps(description, indent=2) + "\n")


def load_hypernet(
    folder: str | pathlib.Path, *, dtype: jnp.dtype = jnp.float32
) -> tuple[HypernetConfig, Any, dict[str, Any]]:
    """Read what `save_hypernet` wrote.

    Returns:
      Config, parameters in `dtype`, and the whole `hypernet.json` (`target`, `card`).

    Raises:
      UserError: files missing or damaged, weights missing, left over or of another shape, values not finite.
    """
    folder = pathlib.Path(folder)
    try:
        description = json.loads((folder / "hypernet.json").read_text())
        tensors = safetensors.numpy.load_file(folder / "hypernet.safetensors")
        if description["format"] != FORMAT:
            raise UserError(f"{folder}/hypernet.json is of format {description['format']}, this reads {FORMAT}.")
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in description["config"].items()}
        config = HypernetConfig(**fields)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no hypernetwork (hypernet.json or hypernet.safetensors is missing): give a folder that "
            "`d2l train` or `d2l import-checkpoint` wrote."
        ) from error
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError, safetensors.SafetensorError) as error:
        raise UserError(f"the hypernetwork in {folder} is damaged ({error}): fetch or make it again.") from error

    def take(path, leaf):
        name = ".".join(key.key for key in path)
        array = tensors.pop(name, None)
        if array is None or array.shape != leaf.shape:
            found = "nothing" if array is None else f"shape {array.shape}"
            raise UserError(f"{folder} has {found} for the weight {name}, its config asks for shape {leaf.shape}.")
        if not np.isfinite(array.astype(np.float32)).all():
            raise UserError(f"the weight {name} in {folder} holds NaN or infinity: fetch or make it again.")
        return jnp.asarray(array.astype(dtype))

    params = jax.tree_util.tree_map_with_path(take, abstract_hypernet(config)[1])
    if tensors:
        raise UserError(f"{folder} has weights that its config does not use: {', '.join(sorted(tensors)[:5])}.")
    return config, params, description


def average_hypernets(folders: Sequence[str | pathlib.Path], out: str | pathlib.Path) -> None:
    """Write the mean of the weights of hypernetworks that come from one another, in bfloat16.

    What a further stage takes away and what it gives are both mostly kept (arXiv 2109.01903: weights before and after
    fine-tuning). The card is that of the last one, with the folders' names as `mean_of`.

    Args:
      folders: two or more; all of one target and config.

    Raises:
      UserError: fewer than two, or they do not fit together; what `load_hypernet` and `save_hypernet` refuse.
    """
    if len(folders) < 2:
        raise UserError(f"{len(folders)} hypernetwork(s) have no mean: give two folders or more.")
    loaded = [load_hypernet(folder) for folder in folders]
    config, params, description = loaded[-1]
    for folder, (other, _, about) in zip(folders, loaded, strict=True):
        if other != config or about["target"]["weights_hash"] != description["target"]["weights_hash"]:
            raise UserError(f"{folder} and {folders[-1]} differ in config or target: give stages of one training.")
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *(params for _, params, _ in loaded))
    save_hypernet(
        out,
        config,
        mean,
        target_name=description["target"]["name"],
        target_hash=description["target"]["weights_hash"],
        card=description["card"] | {"mean_of": [str(folder) for folder in folders]},
        dtype=jnp.bfloat16,
    )
