"""Several processes that train as one: joining them, failing together, stopping at the same step."""

import itertools
import os
import signal
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from d2l.errors import UserError

MESSAGE_BYTES = 2048
MEETING_SECONDS = 1800
_meetings = itertools.count()


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Join the processes of this run; call it before anything else of JAX.

    Without arguments the cluster is found as `jax.distributed.initialize` finds it (Cloud TPU, GKE, SLURM, Open MPI, or
    `JAX_COORDINATOR_ADDRESS`); where there is none, this process trains alone.

    Args:
      coordinator: `HOST:PORT` of process 0.

    Raises:
      UserError: only some of the three are given, or they make no sense together, or the others cannot be reached.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given):
        if any(value is None for value in given):
            raise UserError("--coordinator, --num-processes and --process-id go together: give all three, or none.")
        if not 0 <= process_id < num_processes:
            raise UserError(f"--process-id is {process_id} of {num_processes} processes: count them from 0.")
        if not coordinator.rpartition(":")[2].isdecimal():
            raise UserError(f"--coordinator is {coordinator!r}: give HOST:PORT.")
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except ValueError as error:
        if "coordinator_address should be defined" not in str(error) or "JAX_COORDINATOR_ADDRESS" in os.environ:
            raise UserError(f"the processes of this run cannot be joined ({error}).") from error
    except RuntimeError as error:
        raise UserError(f"the processes of this run do not find each other ({_line(error)}).") from error


def leads() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def meet() -> None:
    """Wait until every process has come here.

    Collectives on CPUs give up on a process that is 30 s late, so what takes processes unequal time (compiling,
    reading) ends in a meeting, which waits longer.
    """
    if jax.process_count() > 1:
        everyone = set(range(jax.process_count()))
        multihost.sync_global_processes(f"d2l_{next(_meetings)}", timeout=MEETING_SECONDS, processes=everyone)


def together[T](action: Callable[[], T], *, first_only: bool = False) -> T | None:
    """Do `action` in every process (or in the first one only); a `UserError` of any is raised in all.

    So no process waits for one that has given up. `action` must not wait for other processes itself.
    """
    result, message = None, ""
    try:
        if leads() or not first_only:
            result = action()
    except UserError as error:
        if jax.process_count() == 1:
            raise
        message = str(error)
    if jax.process_count() > 1:
        data = np.zeros(MESSAGE_BYTES, np.uint8)
        encoded = message.encode()[:MESSAGE_BYTES]
        data[: len(encoded)] = np.frombuffer(encoded, np.uint8)
        meet()
        for row in multihost_utils.process_allgather(data):
            if row.any():
                raise UserError(row.tobytes().rstrip(b"\0").decode(errors="replace"))
    return result


def all_true(value: bool) -> bool:
    """Whether `value` is true in every process."""
    if jax.process_count() == 1:
        return value
    meet()
    return bool(multihost_utils.process_allgather(np.array(value)).all())


class StopSignal:
    """Remembers a SIGTERM, so that the loop can save before it ends; several processes stop after the same step.

    In a run of several processes JAX's preemption service receives the signal, whichever process it was sent to, and
    names a step that all can still reach.
    """

    def __init__(self):
        self._asked = False
        self._alone = jax.process_count() == 1
        if self._alone:
            self._before = signal.signal(signal.SIGTERM, self._ask)

    def asked(self, step: int) -> bool:
        """Whether to stop after this step; to be asked once a step."""
        if self._alone:
            return self._asked
        return multihost_utils.reached_preemption_sync_point(step)

    def restore(self) -> None:
        if self._alone:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, *_) -> None:
        self._asked = True


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
