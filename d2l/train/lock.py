"""One run a workdir: a kernel's file lock on disk, a lease with a heartbeat in a bucket."""

import json
import logging
import os
import socket
import threading
import time
import uuid

import filelock
from etils import epath

from d2l.errors import UserError

log = logging.getLogger(__name__)

BEAT = 10.0  # seconds between two beats of a lease
PATIENCE = 4  # beats without a sign of life until a lease is taken over


def lock(workdir: epath.Path) -> "FileLock | Lease":
    """Take the workdir for this run, until `release`; what a dead run left is no obstacle.

    Raises:
      UserError: another run is writing the workdir.
    """
    return Lease(workdir / "lock.json") if "://" in str(workdir) else FileLock(workdir / ".lock")


class FileLock:
    """The kernel lets go of it when the process ends, however it ends."""

    def __init__(self, path: epath.Path):
        self._lock = filelock.FileLock(os.fspath(path))
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise _taken(path) from None

    def release(self) -> None:
        self._lock.release()


class Lease:
    """A small object that its owner rewrites every `beat` seconds.

    Where one is found, it is watched for `PATIENCE` beats: if it changes, its owner lives. Clocks are never compared.
    """

    def __init__(self, path: epath.Path, beat: float = BEAT):
        self._path, self._beat = path, beat
        self._owner = {"run": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
        self._ended = threading.Event()
        found = self._read()
        if found is not None:
            print(f"{path} is there: watching for {PATIENCE * beat:.0f} s whether its run still lives", flush=True)
        for _ in range(PATIENCE if found else 0):
            time.sleep(beat)
            if (now := self._read()) is None:
                break
            if now != found:
                raise _taken(path)
        self._write(0)
        time.sleep(beat / 5)
        if (now := self._read()) is None or now["run"] != self._owner["run"]:
            raise _taken(path)  # two began at once, and the other wrote last
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        self._ended.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _keep(self) -> None:
        count = 0
        while not self._ended.wait(self._beat):
            count += 1
            try:
                self._write(count)
            except Exception as error:  # a bucket's client raises what it likes; the next beat makes up for this one
                log.warning("the lease %s could not be renewed: %s", self._path, error)

    def _read(self) -> dict | None:
        try:
            return json.loads(self._path.read_text())
        except FileNotFoundError:
            return None
        except json.JSONDecodeError:
            return {"run": "damaged"}

    def _write(self, count: int) -> None:
        self._path.write_text(json.dumps(self._owner | {"beat": count}))


def _taken(path: epath.Path) -> UserError:
    return UserError(f"another run is writing {path.parent}: wait until it ends, stop it, or choose another --workdir.")
