"""Finished parts of an interrupted self-generation, in a folder beside the one it writes.

A part is a pure function of the plan and its number, and is written whole or not at all: whichever process made it,
and however often it was killed, the files are the same.
"""

import collections
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import msgpack

from d2l.data.codec import decode, encode
from d2l.data.record import Record
from d2l.errors import UserError

PLAN = "plan.json"


class Parts:
    """The parts of one plan.

    Args:
      folder: is made where it does not stand.
      plan: says everything that the parts depend on.
      count: how many parts there are.

    Raises:
      UserError: the folder holds parts of another plan, or cannot be written.
    """

    def __init__(self, folder: pathlib.Path, plan: dict[str, Any], count: int):
        self.folder, self.count = folder, count
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / PLAN).exists():
                check_same(folder, json.loads((folder / PLAN).read_text()), plan)
            else:
                write_file(folder / PLAN, (json.dumps(plan, indent=2) + "\n").encode())
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}; choose another --out or make room.") from error

    def missing(self, shard: int = 0, shards: int = 1) -> list[int]:
        """Numbers of the parts that are still to be made, of those that a shard makes."""
        return [number for number in range(shard, self.count, shards) if not self._path(number).exists()]

    def save(self, number: int, records: Sequence[Record], counts: collections.Counter[str], rates: dict) -> None:
        """Write a part: its records and what was counted, and beside them the tokens and seconds that it took."""
        packed = msgpack.packb({"counts": dict(sorted(counts.items())), "records": [encode(r) for r in records]})
        try:
            write_file(self._path(number).with_suffix(".json"), json.dumps(rates).encode())
            write_file(self._path(number), packed)
        except OSError as error:
            raise UserError(f"cannot write {self.folder}: {error.strerror}; make room and start again.") from error

    def records(self) -> Iterator[Record]:
        """The records of all parts, in order."""
        for number in range(self.count):
            yield from map(decode, self._load(number)["records"])

    def counts(self) -> collections.Counter[str]:
        """What all parts counted."""
        return sum((collections.Counter(self._load(i)["counts"]) for i in range(self.count)), collections.Counter())

    def rates(self) -> collections.Counter[str]:
        """Tokens and seconds of all parts."""
        files = (self._path(number).with_suffix(".json") for number in range(self.count))
        return sum((collections.Counter(json.loads(file.read_text())) for file in files), collections.Counter())

    def remove(self) -> None:
        """Forget them."""
        shutil.rmtree(self.folder)

    def _load(self, number: int) -> dict[str, Any]:
        return msgpack.unpackb(self._path(number).read_bytes())

    def _path(self, number: int) -> pathlib.Path:
        return self.folder / f"part-{number:05d}.records"


def check_same(folder: pathlib.Path, found: dict[str, Any], plan: dict[str, Any]) -> None:
    """Raise a `UserError` where a folder holds what another plan made; it names a difference."""
    was, now = _flat(found), _flat(plan)
    if differing := [name for name in now if was.get(name) != now[name]]:
        name = differing[0]
        raise UserError(
            f"{folder} was made with {name} {was.get(name)!r}, this command says {now[name]!r}: give the command that "
            "made it, or another --out."
        )


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out = {}
    for name, value in fields.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out


def write_file(path: pathlib.Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(data)
    os.replace(scratch, path)
