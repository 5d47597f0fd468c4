"""What a piece of work costs: seconds without compilation, and peak memory above what was in use before it."""

import contextlib
import ctypes
import dataclasses
import gc
import pathlib
import time
from collections.abc import Callable, Iterator

import jax

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds of a call, and the peak of its memory in bytes; None where the device cannot tell."""

    seconds: float
    peak_bytes: int | None


def measure[T](function: Callable[[], T], rehearse: Callable[[], object] | None = None) -> tuple[T, Cost]:
    """The result of a call and its cost; a call in which something was compiled is made again, and the second counts.

    Args:
      function: what is measured, arrays in its result included.
      rehearse: a shorter call that compiles all that `function` needs, where calling that twice takes too long.
    """
    if rehearse is not None:
        rehearse()
    with _compilations() as compiled:
        result, cost = _once(function)
    if compiled:
        del result
        result, cost = _once(function)
    return result, cost


def _once[T](function: Callable[[], T]) -> tuple[T, Cost]:
    with peak_memory() as peak:
        began = time.perf_counter()
        result = jax.block_until_ready(function())
        seconds = time.perf_counter() - began
    return result, Cost(seconds, peak.bytes)


@contextlib.contextmanager
def _compilations() -> Iterator[list[str]]:
    """A list that fills with the compilations of the block."""
    seen: list[str] = []

    def note(event: str, _: float, **kwargs) -> None:
        if event == COMPILE_EVENT:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


class Peak:
    """`bytes` is known when the block of `peak_memory` has ended."""

    bytes: int | None = None


@contextlib.contextmanager
def peak_memory() -> Iterator[Peak]:
    """Peak memory of the block above what was in use when it began.

    On a CPU it is the resident memory of the process (Linux alone can set its peak back). An accelerator tells only the
    peak since the process began: where an earlier block used more, this one's is not known.
    """
    peak = Peak()
    if jax.default_backend() == "cpu":
        before = _reset_resident()
        yield peak
        after = _status("VmHWM")
        peak.bytes = None if before is None or after is None else max(0, after - before)
        return
    (device, *_) = jax.local_devices()
    before = device.memory_stats() or {}
    yield peak
    after = device.memory_stats() or {}
    if after.get("peak_bytes_in_use", 0) > before.get("peak_bytes_in_use", 0):
        peak.bytes = after["peak_bytes_in_use"] - before["bytes_in_use"]


def _reset_resident() -> int | None:
    """Resident bytes after giving back what is free, with the peak set to that; None where the system cannot."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(field: str) -> int | None:
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
