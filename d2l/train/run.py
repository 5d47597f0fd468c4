"""The loop around any jitted update: progress, scalars, checkpoints, a clean stop."""

import collections
import json
import math
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import tensorboardX
import tqdm

from d2l.train.checkpoint import Checkpoints

RECENT = 20  # steps that the progress line and the result average over

Update = Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]


def run(
    workdir: pathlib.Path,
    state: Any,
    updates: Iterator[tuple[Update, Any]],
    checkpoints: Checkpoints,
    *,
    done: int,
    total: int,
    schedule: Callable[[int], Any],
) -> tuple[Any, int, dict[str, float]]:
    """Apply updates `done` .. `total - 1`; SIGTERM saves a checkpoint and ends the loop.

    Args:
      updates: for each the jitted `(state, batch) -> (state, metrics)` and its batch; metrics are scalars on the
        device and have a `loss`.
      schedule: learning rate of an update, for the log.

    Returns:
      The state, the number of updates done, and the means of the last `RECENT` metrics.

    Raises:
      FloatingPointError: a loss is not finite; the message names the step, and no checkpoint holds its state.
      UserError: a checkpoint could not be written; those before it stay whole.
    """
    stop = _StopSignal()
    writer = tensorboardX.SummaryWriter(str(workdir / "tensorboard"))
    log = (workdir / "metrics.jsonl").open("a")
    progress = tqdm.tqdm(total=total, initial=done, unit="step", disable=None)
    recent: collections.deque[dict[str, float]] = collections.deque(maxlen=RECENT)
    began = time.monotonic()
    waiting: tuple[int, dict[str, jax.Array]] | None = None

    def report(step: int, metrics: dict[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(
                f"the loss of step {step} is {values['loss']}: the last checkpoint before it is kept; lower config.lr."
            )
        values |= {"lr": float(schedule(step - 1)), "seconds": time.monotonic() - began}
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        log.write(json.dumps({"step": step} | values) + "\n")
        log.flush()
        recent.append(values)
        progress.update()
        progress.set_postfix({name: f"{_mean(recent, name):.3f}" for name in ("loss", "exact")}, refresh=False)

    try:
        for update, batch in updates:
            state, metrics = update(state, batch)
            done += 1
            if waiting is not None:
                report(*waiting)  # of the step before, while this one runs
            waiting = (done, metrics)
            if done % checkpoints.every == 0 or done == total or stop.asked:
                report(*waiting)  # never save a state whose loss was not finite
                waiting = None
                checkpoints.save(done, state)
            if stop.asked:
                break
    finally:
        progress.close()
        writer.close()
        log.close()
        checkpoints.close()
        stop.restore()
    return state, done, {name: _mean(recent, name) for name in recent[-1]} if recent else {}


def _mean(rows: collections.deque[dict[str, float]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


class _StopSignal:
    """Remembers a SIGTERM, so that the loop can save before it ends."""

    def __init__(self):
        self.asked = False
        self._before = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_):
        self.asked = True

    def restore(self) -> None:
        signal.signal(signal.SIGTERM, self._before)
