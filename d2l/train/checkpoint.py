"""Orbax checkpoints of the train state; a checkpoint's number is the number of updates done."""

import json
import logging
import pathlib
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from d2l.errors import UserError

# Orbax tells about every file it writes, and prints the errors that it raises as well; the progress line and the raised
# error are enough.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Checkpoints:
    """Checkpoints under `workdir/checkpoints`, with the config that made them in `workdir/config.json`.

    Args:
      every: updates between checkpoints.
      keep: how many of the latest stay.

    Raises:
      UserError: the folder holds the checkpoints of another config, or cannot be written.
    """

    def __init__(self, workdir: pathlib.Path, config: dict[str, Any], *, every: int, keep: int):
        self.every = every
        self._failed: Exception | None = None
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            _claim(workdir / "config.json", config)
        except OSError as error:
            raise UserError(f"cannot write {workdir}: {error.strerror}; choose another --workdir.") from error
        self._checkpointer = ocp.training.Checkpointer(
            (workdir / "checkpoints").absolute(),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def restore(self, state: Any) -> tuple[Any, int]:
        """The latest state and its number, or the given one and 0.

        Raises:
          UserError: the checkpoint is damaged, or of other shapes.
        """
        latest = self._checkpointer.latest
        if latest is None:
            return state, 0
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
        try:
            return self._checkpointer.load(latest.step, abstract), latest.step
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"the checkpoint of step {latest.step} cannot be read (it is damaged, or of another version's shapes): "
                f"delete {latest.path} to go on from the one before."
            ) from error

    def save(self, step: int, state: Any) -> None:
        """Write a checkpoint; on an error the ones before stay whole."""
        try:
            self._checkpointer.save(step, state, force=True)
        except (OSError, ValueError) as error:
            self._failed = error
            raise UserError(
                f"the checkpoint of step {step} could not be written ({str(error).splitlines()[0]}): make room and run "
                "the same command again, it goes on from the checkpoint before."
            ) from error

    def close(self) -> None:
        """Wait for what is under way; the error of a failed save is not raised a second time."""
        try:
            self._checkpointer.close()
        except Exception as error:
            if error is not self._failed:
                raise
            self._checkpointer.close()  # Orbax tells each thread of an error once, then closes


def _claim(path: pathlib.Path, config: dict[str, Any]) -> None:
    """Write the config of a new workdir, or check that an old one has the same."""
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    if not path.exists():
        path.write_text(text)
        return
    old = json.loads(path.read_text())
    if old != json.loads(text):
        names = sorted(key for key in old | config if old.get(key) != json.loads(text).get(key))
        raise UserError(
            f"{path.parent} holds the run of another config (they differ in {', '.join(names)}): choose another "
            "--workdir, or run the config it was made with."
        )
