"""Records as JSON lines: one record a line, written whole or not at all, read with the line of every mistake."""

import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from d2l.data.record import Record
from d2l.errors import UserError


def parse_json_lines(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, Any]]:
    """Line numbers from 1 and what stands there; empty lines are left out.

    Raises:
      UserError: a line is no UTF-8 or no JSON; the sentence gives `name` and its number.
    """
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                yield number, json.loads(line)
        except UnicodeDecodeError as error:
            raise UserError(f"{name}, line {number} is not UTF-8: convert the file to UTF-8.") from error
        except json.JSONDecodeError as error:
            raise UserError(f"{name}, line {number} is no JSON ({error.msg}): give one JSON object a line.") from error


def read_records(path: str | pathlib.Path) -> Iterator[Record]:
    """The records of a file that `write_records` made.

    Raises:
      UserError: a line is malformed, or an id comes twice in a source and split; the sentence names file and line.
    """
    try:
        with open(path, "rb") as lines:
            yield from _records(lines, str(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a file of records.") from error


def _records(lines: Iterable[bytes], name: str) -> Iterator[Record]:
    seen: dict[tuple[str, str, str], int] = {}
    for number, fields in parse_json_lines(lines, name):
        try:
            record = Record.from_json(fields)
        except UserError as error:
            raise UserError(f"{name}, line {number}: {error}") from error
        key = (record.source, record.split, record.id)
        if key in seen:
            raise UserError(
                f"{name}, line {number}: the id {record.id!r} stands on line {seen[key]} already: give every record "
                "of a source and split an id of its own."
            )
        seen[key] = number
        yield record


def write_records(path: str | pathlib.Path, records: Iterable[Record]) -> int:
    """Write records as JSON lines and return how many; an interrupted write leaves what was there before.

    Raises:
      UserError: there is no record, or the file cannot be written.
    """
    path = pathlib.Path(path)
    records = iter(records)
    first = next(records, None)
    if first is None:
        raise UserError(f"there are no records to write to {path}: give at least one document.")
    scratch = path.with_name(f".{path.name}.part")
    count = 0
    try:
        with scratch.open("w", encoding="utf-8") as file:
            for record in itertools.chain((first,), records):
                count += 1
                file.write(json.dumps(record.to_json(), ensure_ascii=False) + "\n")
        os.replace(scratch, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another place or make room.") from error
    finally:
        scratch.unlink(missing_ok=True)
    return count
