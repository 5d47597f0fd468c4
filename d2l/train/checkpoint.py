"""Orbax checkpoints of the train state; a checkpoint's number is the number of updates done.

A checkpoint holds the hypernetwork, the optimiser, where the input stands, and a digest of the bits of each. What is
frozen is never in it.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from orbax.checkpoint import v1 as ocp

from d2l.errors import UserError
from d2l.train import processes

log = logging.getLogger(__name__)

# Orbax tells about every file it writes, and prints the errors that it raises as well; the progress line and the raised
# error are enough.
logging.getLogger("absl").setLevel(logging.CRITICAL)

STATE, INPUT = "state", "input"  # the parts of a checkpoint
BEST = "loss"


class Checkpoints:
    """Checkpoints under `workdir/checkpoints`, written while training goes on.

    Args:
      every: updates between checkpoints.
      keep: how many of the latest stay.
      keep_best: how many of those with the least loss stay too.
    """

    def __init__(self, workdir: epath.Path, *, every: int, keep: int, keep_best: int = 0):
        self.every = every
        self._saving: int | None = None
        self._damaged: set[int] = set()
        policies = ocp.training.preservation_policies
        best = policies.BestN(get_metric_fn=lambda metrics: metrics[BEST], reverse=True, n=keep_best)
        self._checkpointer = ocp.training.Checkpointer(
            workdir / "checkpoints",
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            cleanup_tmp_directories=True,
        )

    def restore(self, state: Any, cursor_of: Callable[[int], Any] = lambda number: None) -> tuple[Any, Any, int]:
        """The latest whole state, its cursor and its number; the given state, no cursor and 0 in a new workdir.

        A damaged checkpoint is left out with a warning. Arrays come back with the shardings of `state` and of the
        cursor, whatever mesh they were saved from.

        Args:
          cursor_of: the abstract cursor (with its sharding) of a checkpoint's number; None where the input needs none.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        found = [checkpoint.step for checkpoint in self._checkpointer.checkpoints]
        for number in reversed(found):
            loaded = _load(self._checkpointer.directory / str(number), abstract(state), cursor_of(number))
            if loaded is not None:
                return *loaded, number
            self._damaged.add(number)
        if found:
            raise _unreadable(self._checkpointer.directory, found)
        return state, None, 0

    def save(self, number: int, state: dict[str, Any], cursor: Any = None, *, loss: float) -> None:
        """Begin to write a checkpoint once the one before is written; on an error those before stay whole.

        The state may be donated when this returns.

        Raises:
          UserError: this checkpoint, or the one before, could not be written.
        """
        self.wait()
        parts = {STATE: {"train": state, "digest": digest(state)}}
        if cursor is not None:
            parts[INPUT] = {"cursor": cursor}
        self._saving = number
        with self._named_error():
            self._checkpointer.save_checkpointables_async(
                number, parts, force=True, overwrite=number in self._damaged, metrics={BEST: loss}
            )

    def wait(self) -> None:
        """Wait until what was begun is written.

        Raises:
          UserError: it could not be written.
        """
        with self._named_error():
            self._checkpointer.wait()
        self._saving = None

    def close(self) -> None:
        """Wait for what is under way, and end."""
        with self._named_error():
            self._checkpointer.close()

    @contextlib.contextmanager
    def _named_error(self) -> Iterator[None]:
        """Says which checkpoint could not be written; Orbax tells each thread of an error once, and so does this."""
        try:
            yield
        except (OSError, ValueError) as error:
            number, self._saving = self._saving, None
            if number is None:
                raise
            raise UserError(
                f"the checkpoint of step {number} could not be written ({_line(error)}): make room and run the same "
                "command again, it goes on from the checkpoint before."
            ) from error


def read_params(workdir: epath.Path, params: Any, *, step: int | None = None, best: bool = False) -> tuple[Any, int]:
    """The parameters alone of a checkpoint: the latest whole one, that of `step`, or the one with the least loss.

    Args:
      params: abstract, with shardings.

    Returns:
      The parameters and the checkpoint's number.

    Raises:
      UserError: there is no such checkpoint, or it cannot be read.
    """
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{workdir} holds no checkpoints: give the workdir of a run of `d2l train`.")
    with ocp.training.Checkpointer(folder) as checkpointer:
        losses = {c.step: c.metrics[BEST] if c.metrics else None for c in checkpointer.checkpoints}
    numbers = sorted(losses)
    if step is not None:
        numbers = [number for number in numbers if number == step]
    elif best:
        numbers = [min((loss, number) for number, loss in losses.items() if loss is not None)[1]]
    if not numbers:
        raise UserError(f"{folder} has no checkpoint {step if step is not None else ''}: it has {sorted(losses)}.")
    for number in reversed(numbers):
        loaded = _load(folder / str(number), {"params": params}, partial=True)
        if loaded is not None:
            return loaded[0]["params"], number
    raise _unreadable(folder, numbers)


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of arrays."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)


def replicated(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """The same devices, each with a whole array."""
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return sharding


@jax.jit
def digest(tree: dict[str, Any]) -> dict[str, jax.Array]:
    """For each entry the sum of its arrays' bits, uint32 each: the same however the arrays are sharded."""

    def total(a: jax.Array) -> jax.Array:
        words = jax.lax.bitcast_convert_type(a, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[a.dtype.itemsize])
        return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)

    def mix(part: Any) -> jax.Array:
        result = jnp.uint32(0)
        for leaf in jax.tree.leaves(part):
            result = result * jnp.uint32(31) + total(leaf)
        return result

    return {name: mix(part) for name, part in tree.items()}


def _load(path: epath.Path, state: Any, cursor: Any = None, *, partial: bool = False) -> tuple[Any, Any] | None:
    """State and cursor of a checkpoint, or None with a warning if it is damaged."""
    whole = replicated(jax.tree.leaves(state)[0].sharding)
    sums = {name: jax.ShapeDtypeStruct((), jnp.uint32, sharding=whole) for name in state}
    parts = {STATE: {"train": state, "digest": sums}}
    if cursor is not None:
        parts[INPUT] = {"cursor": cursor}
    # Each process reads by itself: one that finds damage must not leave the others waiting.
    me = jax.process_index()
    options = ocp.options
    # Answers are cached: Orbax's threads, asking first and all at once, abort in jaxlib.
    assert all([leaf.sharding.is_fully_addressable in (True, False) for leaf in jax.tree.leaves(parts)])
    context = ocp.Context(
        multiprocessing_options=options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"read_by_{me}"
        ),
        pytree_options=options.PyTreeOptions(loading=options.PyTreeOptions.Loading(partial_load=partial)),
    )
    reason = ""
    try:
        with context:
            loaded = ocp.load_checkpointables(path, parts)
    except Exception as error:  # whatever Orbax, TensorStore and the file system make of damaged files
        while error.__cause__ is not None:
            error = error.__cause__
        reason = f"{_line(error):.200}"
    if processes.all_true(not reason):
        train, stored = loaded[STATE]["train"], loaded[STATE]["digest"]
        if jax.device_get(digest(train)) == jax.device_get(stored):
            return train, loaded[INPUT]["cursor"] if cursor is not None else None
        reason = "its digest is another"
    log.warning("the checkpoint %s is damaged and left out (%s)", path, reason or "another process cannot read it")
    return None


def _unreadable(folder: epath.Path, numbers: list[int]) -> UserError:
    return UserError(
        f"no checkpoint of {numbers} in {folder} can be read (damaged, or of another version's shapes): restore them, "
        "or choose another --workdir to begin anew."
    )


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
