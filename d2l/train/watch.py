"""What a run tells: scalars for TensorBoard and `metrics.jsonl`, the progress line, a profile of some steps."""

import collections
import contextlib
import io
import json
from collections.abc import Callable
from typing import Any

import jax
import tensorboardX
import tqdm
from etils import epath

from d2l.errors import UserError
from d2l.train.processes import leads
from d2l.train.workdir import new_folder

RECENT = 20  # steps that the progress line and the result average over
# In the progress line.
SHOWN = {"loss": "loss", "exact": "exact", "packing": "input/packing", "tokens/s": "speed/tokens_per_second_per_chip"}


class Watch:
    """Scalars and progress of a run; only the first process writes.

    Args:
      done: updates done before; what an earlier run logged after them is dropped.
    """

    def __init__(self, workdir: epath.Path, *, done: int, total: int):
        self._recent: collections.deque[dict[str, float]] = collections.deque(maxlen=RECENT)
        self._since_save: list[float] = []
        self._writes = leads()
        if self._writes:
            self._log = _Lines(workdir / "metrics.jsonl", keep=lambda line: json.loads(line)["step"] <= done)
            self._writer = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=done + 1)
            self._progress = tqdm.tqdm(total=total, initial=done, unit="step", disable=None)

    def report(self, step: int, values: dict[str, float]) -> None:
        """Tell the scalars of an update."""
        self._recent.append(values)
        self._since_save.append(values["loss"])
        if self._writes:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._log.write(json.dumps({"step": step} | values))
            shown = {label: f"{self._mean(name):,.4g}" for label, name in SHOWN.items() if name in values}
            self._progress.update()
            self._progress.set_postfix(shown, refresh=False)

    def saved(self) -> float:
        """Called when a checkpoint is made: returns the mean loss since the one before."""
        if self._writes:
            self._log.flush()
        losses, self._since_save = self._since_save, []
        return sum(losses) / max(len(losses), 1)

    def means(self) -> dict[str, float]:
        """Means over the last updates."""
        return {name: self._mean(name) for name in self._recent[-1]} if self._recent else {}

    def close(self) -> None:
        if self._writes:
            self._progress.close()
            self._writer.close()
            self._log.close()

    def _mean(self, name: str) -> float:
        values = [row[name] for row in self._recent if name in row]
        return sum(values) / len(values)


class _Lines:
    """Lines of a text file: appended on disk, written anew at every `flush` in a bucket, which cannot append."""

    def __init__(self, path: epath.Path, keep: Callable[[str], bool]):
        self._path = path
        old = path.read_text().splitlines() if path.exists() else []
        # A killed run may leave half of a line at the end.
        self._kept = [line for line in old if line.endswith("}") and keep(line)]
        self._file = None if "://" in str(path) else path.open("w")
        self._text = io.StringIO() if self._file is None else self._file
        for line in self._kept:
            self._text.write(line + "\n")
        self.flush()

    def write(self, line: str) -> None:
        self._text.write(line + "\n")
        if self._file is not None:
            self._file.flush()

    def flush(self) -> None:
        if self._file is None:
            self._path.write_text(self._text.getvalue())
        else:
            self._file.flush()

    def close(self) -> None:
        self.flush()
        self._text.close()


class Profile:
    """An xprof trace of the updates `first` .. `last` under `workdir/profile`.

    Args:
      steps: `A:B`, both counted from 1; "" for none.

    Raises:
      UserError: `steps` is no such range.
    """

    def __init__(self, workdir: epath.Path, steps: str):
        first, _, last = steps.partition(":")
        if steps and not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            raise UserError(f"--profile-steps is {steps!r}: give the first and the last step, as 10:12.")
        self._first, self._last = (int(first), int(last)) if steps else (0, 0)
        self._place, self._running = workdir / "profile", False

    def before(self, step: int) -> None:
        """Called before an update is dispatched."""
        if step == self._first:
            self._folder = contextlib.ExitStack()
            jax.profiler.start_trace(self._folder.enter_context(new_folder(self._place)))
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """Called when an update is dispatched."""
        if self._running and step >= self._last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """End a trace that still runs."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            self._folder.close()
