"""What a run makes: the hypernetwork, written at the end or from a checkpoint."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from d2l.hypernet.chunk import Chunking
from d2l.hypernet.config import HypernetConfig
from d2l.hypernet.hypernet import abstract_hypernet
from d2l.hypernet.store import save_hypernet
from d2l.train.checkpoint import read_params, replicated
from d2l.train.processes import leads
from d2l.train.workdir import claim, new_folder, read_json, whole_path

DESCRIPTION = "description.json"  # of the product, in its workdir


@dataclasses.dataclass(frozen=True)
class Product:
    """A hypernetwork and the target that it is for."""

    config: HypernetConfig
    target_name: str
    target_hash: str

    def claim(self, workdir: epath.Path) -> None:
        """Note in a new workdir what it is about to make; an old one must be about the same.

        Raises:
          UserError: it is about another target or hypernetwork.
        """
        fields = {"target": {"name": self.target_name, "weights_hash": self.target_hash}}
        claim(workdir / DESCRIPTION, fields | {"hypernet": dataclasses.asdict(self.config)}, what="target")

    def save(self, folder: epath.Path, params: Any, card: dict[str, Any], dtype: jnp.dtype) -> None:
        """Write the hypernetwork (`save_hypernet`), gathered from all processes by the first.

        Raises:
          UserError: it cannot be written.
        """
        params = jax.device_put(params, jax.tree.map(lambda a: replicated(a.sharding), params))
        if leads():
            names = {"target_name": self.target_name, "target_hash": self.target_hash}
            with new_folder(folder) as local:
                save_hypernet(local, self.config, jax.device_get(params), **names, card=card, dtype=dtype)


def make_card(fields: dict[str, Any], updates: int) -> dict[str, Any]:
    """What is said of a hypernetwork beside its weights: its config, and how documents are to be cut (`Chunking`).

    Raises:
      UserError: the config says it in a way that cannot be used.
    """
    chunking = {field.name: fields[field.name] for field in dataclasses.fields(Chunking) if field.name in fields}
    return {"config": fields, "updates": updates} | dataclasses.asdict(Chunking(**chunking))


def export_checkpoint(workdir: str, out: str, *, step: int | None = None, best: bool = False) -> int:
    """Write the hypernetwork of a checkpoint of `workdir` to the folder `out`; returns the checkpoint's number.

    Args:
      step: which checkpoint; default the latest.
      best: instead the one with the least loss.

    Raises:
      UserError: no workdir, no such checkpoint, or `out` cannot be written.
    """
    place = whole_path(workdir)
    fields, description = read_json(place / "config.json"), read_json(place / DESCRIPTION)
    sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in description["hypernet"].items()}
    product = Product(HypernetConfig(**sizes), description["target"]["name"], description["target"]["weights_hash"])
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32, sharding=here), abstract_hypernet(product.config)[1]
    )
    params, number = read_params(place, params, step=step, best=best)
    product.save(epath.Path(out), params, make_card(fields, number), jnp.dtype(fields["save_dtype"]))
    return number
