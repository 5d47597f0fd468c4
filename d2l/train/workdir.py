"""The folder of a run: on disk or in a bucket, of one config, written by one run at a time."""

import contextlib
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from etils import epath

from d2l.errors import UserError
from d2l.train import processes
from d2l.train.lock import lock

logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints the errors that it raises as well

# Fields of a config that say where and how often, not what is computed, or how its result is to be used: they may
# differ when a run goes on.
FREE_FIELDS = (
    "mesh",
    "remat",
    "checkpoint_every",
    "keep",
    "keep_best",
    "max_chunk_len",
    "chunk_overlap",
    "keep_chunks",
    "chunk_at",
    "keep_loudness",
    "chunk_len",
)


def whole_path(path: str | os.PathLike[str]) -> epath.Path:
    """The path from the root on, which Orbax reads checkpoints by; `gs://BUCKET/PATH` stays."""
    path = epath.Path(path)
    return path if path.is_absolute() else path.absolute()


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], config: dict[str, Any]) -> Iterator[epath.Path]:
    """The workdir of a run, which no other run can have meanwhile; it keeps the config in `config.json`.

    Raises:
      UserError: another run has it, it belongs to another config, or it cannot be written.
    """
    path = whole_path(path)
    held = processes.together(lambda: _take(path, config), first_only=True)
    try:
        yield path
    finally:
        if held is not None:
            held.release()


def read_json(path: epath.Path) -> Any:
    """The content of a file of a workdir.

    Raises:
      UserError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: give the workdir of a run of `d2l train`.") from error


def claim(path: epath.Path, fields: dict[str, Any], *, free: tuple[str, ...] = (), what: str = "config") -> None:
    """Write what a run is made of into a new workdir, or check that an old one has the same.

    Raises:
      UserError: it has another; the sentence names the fields.
    """
    if not path.exists():
        path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
        return
    old, new = read_json(path), json.loads(json.dumps(fields))
    names = sorted(
        key for key in old | new if key not in free and (key in old, old.get(key)) != (key in new, new.get(key))
    )
    if names:
        raise UserError(
            f"{path.parent} holds the run of another {what} (they differ in {', '.join(names)}): choose another "
            f"--workdir, or run the {what} it was made with."
        )


@contextlib.contextmanager
def new_folder(path: epath.Path) -> Iterator[pathlib.Path]:
    """A local folder to write what belongs at `path`, which may be in a bucket; there it is copied to at the end."""
    if "://" not in str(path):
        yield pathlib.Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="d2l-") as scratch:
        yield (local := pathlib.Path(scratch) / path.name)
        for file in local.rglob("*"):
            if file.is_file():
                place = path / file.relative_to(local)
                place.parent.mkdir(parents=True, exist_ok=True)
                epath.Path(file).copy(place, overwrite=True)


def _take(path: epath.Path, config: dict[str, Any]) -> Any:
    in_bucket = "://" in str(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        held = lock(path)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{path} needs gcsfs: pip install 'd2l[gcs]'.") from error
    except Exception as error:  # a bucket's client raises what it likes
        if not (in_bucket or isinstance(error, OSError)):
            raise
        hint = (
            "log in (gcloud auth application-default login), check the bucket and your rights, or " if in_bucket else ""
        )
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"cannot write {path} ({reason}): {hint}choose another --workdir.") from error
    try:
        claim(path / "config.json", config, free=FREE_FIELDS)
    except BaseException:
        held.release()
        raise
    return held
