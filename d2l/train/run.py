"""The loop around any jitted update: progress, scalars, checkpoints, a clean stop."""

import dataclasses
import math
import time
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np

from d2l.train.checkpoint import Checkpoints
from d2l.train.processes import StopSignal
from d2l.train.watch import Profile, Watch

Update = Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Work:
    """One update to do.

    Attributes:
      update: the jitted `(state, batch) -> (state, metrics)`; metrics are scalars on the device and have a `loss`.
      batch: on the devices.
      scalars: what is known of the batch, for the log.
      cursor: where the input stands after this batch, on the devices; None where the step's number says it.
      tokens: positions of the batch that are used, a chip.
      flops: of the update without recomputation, a chip, as a share of what the chip can do in a second at best; 0
        where that is not known.
    """

    update: Update
    batch: Any
    scalars: dict[str, float] = dataclasses.field(default_factory=dict)
    cursor: jax.Array | None = None
    tokens: float = 0.0
    flops: float = 0.0


def run(
    state: Any,
    work: Generator[Work],
    checkpoints: Checkpoints,
    watch: Watch,
    *,
    done: int,
    total: int,
    rates: np.ndarray,
    profile: Profile,
) -> tuple[Any, int]:
    """Apply updates `done` .. `total - 1`; SIGTERM saves a checkpoint and ends the loop.

    Args:
      rates: learning rate of every update, for the log.

    Returns:
      The state and the number of updates done.

    Raises:
      FloatingPointError: a loss is not finite; the message names the step, and no checkpoint holds its state.
      UserError: a checkpoint could not be written; those before it stay whole.
    """
    clock = _Clock()
    waiting: tuple[int, Work, dict[str, jax.Array], float] | None = None

    def report(step: int, item: Work, metrics: dict[str, jax.Array], waited: float) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(
                f"the loss of step {step} is {values['loss']}: the last checkpoint before it is kept; lower config.lr."
            )
        seconds = clock.lap()
        values |= {"lr": float(rates[step - 1]), "seconds": clock.total, "input/wait": waited / seconds} | item.scalars
        if item.tokens:
            values["speed/tokens_per_second_per_chip"] = item.tokens / seconds
        if item.flops:
            values["speed/share_of_peak"] = item.flops / seconds
        watch.report(step, values)

    stop = StopSignal()
    try:
        while done < total:
            began = time.monotonic()
            item = next(work)
            waited = time.monotonic() - began
            profile.before(done + 1)
            with jax.transfer_guard("disallow"):
                state, metrics = item.update(state, item.batch)
                done += 1
                if waiting is not None:
                    report(*waiting)  # of the step before, while this one runs
            waiting = (done, item, metrics, waited)
            profile.after(done, metrics)
            stopped = stop.asked(done)
            if done % checkpoints.every == 0 or done == total or stopped:
                report(*waiting)  # never save a state whose loss was not finite
                waiting = None
                checkpoints.save(done, state, item.cursor, loss=watch.saved())
            if stopped:
                break
        checkpoints.wait()
    finally:
        work.close()
        profile.close()
        watch.close()
        stop.restore()
    return state, done


class _Clock:
    """Seconds since the beginning, and between reports."""

    def __init__(self):
        self._began = self._last = time.monotonic()

    @property
    def total(self) -> float:
        return self._last - self._began

    def lap(self) -> float:
        before, self._last = self._last, time.monotonic()
        return self._last - before
