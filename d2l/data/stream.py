"""Packs from an endless order of examples, each pack from a sub-stream of its own.

Pack p of every step reads the examples p, p + P, p + 2P, ... of the order (P packs a step), so that a process reads
nothing but what its packs need, and what a step trains on depends on seed and step alone, not on the number of
processes. Where a pack stands is one row of numbers: the next example to read, and those that wait in its window.
"""

import concurrent.futures
import logging
import os
from collections.abc import Callable, Sequence

import numpy as np

from d2l.data.pack import Batch, Example, Packer, TooLarge
from d2l.errors import UserError

THREADS = min(8, os.cpu_count() or 1)
log = logging.getLogger(__name__)


class PackStream:
    """An iterator over steps: for each the finished packs of `slots`, in their order.

    The oldest waiting example always goes first, so that none waits for ever, then any that still fits: examples of
    many sizes fill several dimensions at once. One that does not fit an empty pack is left out and counted.

    Args:
      examples: the endless order, by position; read from several threads.
      slots: the packs to make, of `packs` a step.
      packer: makes an empty pack.
      window: examples that wait; a few times as many as a pack takes.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        slots: Sequence[int],
        packs: int,
        packer: Callable[[], Packer],
        window: int,
    ):
        self._examples, self._packer = examples, packer
        self._threads = concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix="examples")
        self._slots = [_Slot(self._read, slot, packs, window) for slot in slots]
        self.left_out = 0

    def __iter__(self) -> "PackStream":
        return self

    def __next__(self) -> list[Batch]:
        return [self._fill(slot) for slot in self._slots]

    def get_state(self) -> np.ndarray:
        """Where every slot stands, int32 `[slots, 1 + window]`."""
        return np.stack([slot.row for slot in self._slots])

    def set_state(self, rows: np.ndarray) -> None:
        """Go on from where `get_state` was called."""
        for slot, row in zip(self._slots, rows, strict=True):
            slot.row = row

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _read(self, position: int) -> concurrent.futures.Future:
        return self._threads.submit(self._examples.__getitem__, position)

    def _fill(self, slot: "_Slot") -> Batch:
        packer = self._packer()
        while True:
            for number, example in slot.waiting():
                try:
                    if packer.add(example):
                        slot.take(number)
                except TooLarge as error:
                    slot.take(number)
                    self._leave_out(str(error))
            if not slot.refill():
                return packer.finish()[0]
            if not packer.examples:
                raise UserError("none of many examples fits into a pack: raise the stage's shapes, or max_chunk_len.")

    def _leave_out(self, reason: str) -> None:
        if not self.left_out:
            log.warning("an example is left out, as all that are larger than a whole pack will be: %s", reason)
        self.left_out += 1


class _Slot:
    """The window of one pack over its sub-stream."""

    def __init__(self, read: Callable[[int], concurrent.futures.Future], slot: int, packs: int, window: int):
        self._read = lambda number: read(slot + number * packs)
        self._next, self._window = 0, window
        self._waiting: dict[int, concurrent.futures.Future] = {}
        self.refill()

    def waiting(self) -> list[tuple[int, Example]]:
        """Numbers in the sub-stream and their examples, the oldest first."""
        return [(number, example.result()) for number, example in self._waiting.items()]

    def take(self, number: int) -> None:
        del self._waiting[number]

    def refill(self) -> bool:
        """Fill the window up; True if nothing was left in it."""
        emptied = not self._waiting
        for _ in range(self._window - len(self._waiting)):
            self._waiting[self._next] = self._read(self._next)
            self._next += 1
        return emptied

    @property
    def row(self) -> np.ndarray:
        return np.array([self._next, *self._waiting], np.int32)

    @row.setter
    def row(self, row: np.ndarray) -> None:
        self._next, *numbers = (int(number) for number in row)
        self._waiting = {number: self._read(number) for number in numbers}
