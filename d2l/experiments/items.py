"""Results on disk: one JSON line an answer, written a case at a time, so that a killed evaluation goes on.

`WORKDIR/items/SUITE/METHOD.jsonl`. All lines of a case are written at once; what a kill left of one is taken out.
"""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from d2l.data.jsonl import parse_json_lines
from d2l.errors import UserError
from d2l.experiments.suites import Case

FOLDER = "items"


class Items:
    """The answers of one method in one suite.

    Args:
      path: its file.
      cases: those that it will hold, in order.

    Raises:
      UserError: the file holds other items than these.
    """

    def __init__(self, path: pathlib.Path, cases: Sequence[Case]):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows, whole = _whole_cases(path, cases)
        if path.exists():
            os.truncate(path, whole)

    def __contains__(self, case: Case) -> bool:
        return case.id in self.rows

    def add(self, case: Case, rows: list[dict[str, Any]]) -> None:
        """Write the answers of a case; they are on disk when this returns."""
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self.rows[case.id] = rows


def _whole_cases(path: pathlib.Path, cases: Sequence[Case]) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """The rows of every case that is whole in a file, and the bytes that they take."""
    rows: dict[str, list[dict[str, Any]]] = {}
    data = path.read_bytes() if path.exists() else b""
    lines = data.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    found = [fields for _, fields in parse_json_lines(lines, str(path))]
    whole, at = 0, 0
    for case in cases:
        part = found[at : at + len(case.queries)]
        wanted = [(case.id, number) for number in range(len(part))]
        if [(row["case"], row["query"]) for row in part] != wanted:
            raise UserError(f"{path} holds items of another evaluation: choose another --workdir.")
        if len(part) < len(case.queries):
            break
        rows[case.id] = part
        whole += sum(map(len, lines[at : at + len(part)]))
        at += len(part)
    return rows, whole


def read_items(workdir: str | pathlib.Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """All rows of a run, `{suite: {method: rows}}`, in the order of the config.

    Raises:
      UserError: the folder holds no evaluation, or a file of it is damaged.
    """
    workdir = pathlib.Path(workdir)
    try:
        config = json.loads((workdir / "config.json").read_text())
        names = [(suite, method) for suite in config["suites"] for method in config["methods"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{workdir} holds no evaluation: give the workdir of a run of `d2l eval --config`.") from error
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for suite, method in names:
        path = workdir / FOLDER / suite / f"{method}.jsonl"
        if path.exists():
            with path.open("rb") as lines:
                found.setdefault(suite, {})[method] = [row for _, row in parse_json_lines(lines, str(path))]
    return found
