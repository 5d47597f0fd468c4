"""Records on disk: a folder of ArrayRecord shards and `records.json`, which says what each must hold.

`records.json`: `{"format", "records": count, "teacher": weights hash of the target that answered, or null,
"sources": {"SOURCE/SPLIT": count}, "shards": {name: {"records": count, "bytes": size}}}`.
"""

import collections
import contextlib
import json
import pathlib
from collections.abc import Iterable

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from d2l.data.codec import decode, encode
from d2l.data.record import Record
from d2l.errors import UserError
from d2l.files import atomic_folder

FORMAT = "d2l-records-1"
INDEX = "records.json"


def write_records(
    folder: str | pathlib.Path, records: Iterable[Record], *, shards: int = 1, teacher: str | None = None
) -> int:
    """Write records in turn to `shards` files; a folder that stood there is replaced when all are written.

    Args:
      teacher: weights hash of the target whose answers the queries store; None where they store none.

    Returns:
      How many records were written.

    Raises:
      UserError: there are no records, an id stands twice in its source and split, a teacher's answer has no `teacher`
        to belong to, or the folder cannot be written.
    """
    sources: collections.Counter[str] = collections.Counter()
    seen: set[tuple[str, str, str]] = set()
    counts = [0] * shards
    with atomic_folder(folder) as new:
        paths = [new / f"records-{i:05d}-of-{shards:05d}.array_record" for i in range(shards)]
        with contextlib.ExitStack() as stack:
            # One record a group: Grain reads single records in any order.
            writers = [ArrayRecordWriter(str(path), "group_size:1") for path in paths]
            for writer in writers:
                stack.callback(writer.close)
            for number, record in enumerate(records):
                name = (record.source, record.split, record.id)
                if name in seen:
                    raise UserError(f"two records of {record.source} ({record.split}) have the id {record.id!r}.")
                if teacher is None and any(query.teacher is not None for query in record.queries):
                    raise UserError(f"record {record.id!r} stores a teacher's answer: say which target gave it.")
                seen.add(name)
                sources[f"{record.source}/{record.split}"] += 1
                counts[number % shards] += 1
                writers[number % shards].write(encode(record))
        if min(counts) == 0:
            raise UserError(
                f"{sum(counts)} records do not fill {shards} shards: give records, or ask for fewer shards."
            )
        index = {
            "format": FORMAT,
            "records": sum(counts),
            "teacher": teacher,
            "sources": dict(sorted(sources.items())),
            "shards": {
                path.name: {"records": count, "bytes": path.stat().st_size}
                for path, count in zip(paths, counts, strict=True)
            },
        }
        (new / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return sum(counts)


class Shards:
    """The records of a folder that `write_records` wrote, by number; safe to read from several threads.

    Attributes:
      teacher: weights hash of the target whose answers are stored, or None.

    Raises:
      UserError: the folder holds no records, or a shard is missing, truncated or damaged. Sizes, record counts and the
        first and the last record of every shard are checked here, the others when they are read.
    """

    def __init__(self, folder: str | pathlib.Path):
        if "://" in str(folder):
            raise UserError(
                f"{folder} is no folder: records are read from disk; mount the bucket, for example by gcsfuse."
            )
        self.folder = pathlib.Path(folder)
        try:
            index = json.loads((self.folder / INDEX).read_text())
            if index["format"] != FORMAT:
                raise UserError(f"{self.folder}/{INDEX} is of format {index['format']}, this reads {FORMAT}.")
            shards = index["shards"]
            self.teacher = index["teacher"]
            self._counts = [shard["records"] for shard in shards.values()]
        except OSError as error:
            raise UserError(f"{self.folder} holds no {INDEX}: give a folder that `d2l data` wrote.") from error
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.folder}/{INDEX} is damaged ({error}): write the records again.") from error
        for name, shard in shards.items():
            path = self.folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                found = "missing" if size is None else f"truncated or damaged ({size:,} bytes of {shard['bytes']:,})"
                raise UserError(f"the shard {path} is {found}: copy or write it again.")
        try:
            self._source = ArrayRecordDataSource([str(self.folder / name) for name in shards])
        except RuntimeError as error:
            raise UserError(f"a shard of {self.folder} is damaged ({_first_line(error)}): write it again.") from error
        if len(self._source) != sum(self._counts):
            raise UserError(
                f"{self.folder} has {len(self._source)} of its {sum(self._counts)} records: write them again."
            )
        first = 0
        for count in self._counts:
            self[first], self[first + count - 1]
            first += count

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, number: int) -> Record:
        try:
            return decode(self._source[number])
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"record {number} of {self.folder} is damaged ({_first_line(error)}): write the records again."
            ) from error

    def __repr__(self) -> str:
        return f"Shards({str(self.folder)!r}, records={len(self)})"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
