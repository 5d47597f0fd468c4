"""Rows of a published data set, as plain dicts, whatever they are stored in.

A place is one of
  a file: parquet, JSONL or JSON (also `.gz`);
  a folder of such files as Hugging Face hubs lay them out, zip archives in it included;
  `hf:OWNER/NAME` or `hf:OWNER/NAME/FOLDER`: the same, fetched from the hub;
  `tfds:NAME`, or a folder that tensorflow-datasets prepared: read through its `data_source`, without TensorFlow.
"""

import gzip
import json
import pathlib
import re
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

from d2l.data.jsonl import parse_json_lines
from d2l.errors import UserError

# Names that sets give to the three splits.
SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation"}
SPLIT_NAMES |= {"dev": "validation", "test": "test"}
SUFFIXES = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz")
FORMATS = "parquet, JSONL or JSON"

Row = dict[str, Any]
Path = pathlib.Path | zipfile.Path


def read_rows(place: str, split: str, part: str | None = None) -> Iterator[tuple[str, Row]]:
    """Rows of one split, each with where it stands (`FILE, row 3`).

    Args:
      split: `train`, `validation` or `test`. A file that is named itself, and a folder that names no splits, hold
        whatever split is asked for.
      part: a word in the path of the files of a set that shares its folder with others (`qasper_e`); such sets have
        one split.

    Raises:
      UserError: the place holds no such rows, or one of its files is malformed.
    """
    if place.startswith("tfds:"):
        return _tfds_rows(place.removeprefix("tfds:"), split)
    if place.startswith("hf:"):
        return _folder_rows(_fetch(place.removeprefix("hf:")), split, part)
    path = pathlib.Path(place)
    if not path.exists():
        raise UserError(f"there is no {place}: give a file, a folder, hf:OWNER/NAME or tfds:NAME.")
    if (path / "dataset_info.json").is_file() and (path / "features.json").is_file():
        return _tfds_rows(path, split)
    if path.is_dir() or path.suffix == ".zip":
        return _folder_rows(path, split, part)
    return _file_rows(path)


def _folder_rows(folder: pathlib.Path, split: str, part: str | None) -> Iterator[tuple[str, Row]]:
    files = [(path, str(path).removeprefix(str(folder))) for path in _data_files(folder)]
    if not files:
        raise UserError(f"{folder} holds no {FORMATS} file: give the folder of a data set.")
    if part is not None:
        chosen = [path for path, name in files if re.search(rf"(?<![a-z0-9]){part}(?![a-z0-9])", name)]
        if not chosen:
            raise UserError(f"{folder} holds no file of {part}: give the folder or file that does.")
    else:
        splits = [_split_of(name) for _, name in files]
        wanted = split if any(splits) else None
        chosen = [path for (path, _), named in zip(files, splits, strict=True) if named == wanted]
        if not chosen:
            known = ", ".join(sorted(set(filter(None, splits))))
            raise UserError(f"{folder} has no {split} split: it has {known}.")
    for path in chosen:
        yield from _file_rows(path)


def _data_files(folder: pathlib.Path) -> Iterator[Path]:
    """Data files below a folder or in an archive, sorted; archives below it count as folders."""
    if folder.suffix == ".zip":
        members = zipfile.Path(folder).rglob("*")
        yield from sorted((path for path in members if path.name.endswith(SUFFIXES)), key=str)
        return
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.suffix == ".zip":
            yield from _data_files(path)
        elif path.name.endswith(SUFFIXES) and path.name != "dataset_infos.json":
            yield path


def _split_of(name: str) -> str | None:
    """The split that a path names: in the file's name first, then in its folders'."""
    for piece in reversed(name.lower().split("/")):
        for word in re.split(r"[^a-z]+", piece):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return None


def _file_rows(path: Path) -> Iterator[tuple[str, Row]]:
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            rows: Iterable[tuple[str, Any]] = _parquet_rows(path)
        elif name.endswith(".jsonl"):
            lines = parse_json_lines(_lines(path), str(path))
            rows = ((f"{path}, line {number}", row) for number, row in lines)
        elif name.endswith(".json"):
            rows = _json_rows(path)
        else:
            raise UserError(f"{path} is none of {FORMATS}: give such a file.")
        for where, row in rows:
            if not isinstance(row, dict):
                raise UserError(f"{where} is {row!r:.40}: give one object a row.")
            yield where, row
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from gzip.open(file) if path.name.endswith(".gz") else file


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of a JSON list, the one row of a JSON object, or rows of JSON lines, as some sets name these files too."""
    data = b"".join(_lines(path))
    try:
        content = json.loads(data)
    except ValueError:
        for number, row in parse_json_lines(data.splitlines(), str(path)):
            yield f"{path}, line {number}", row
        return
    for number, row in enumerate(content if isinstance(content, list) else [content], 1):
        yield f"{path}, row {number}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError('parquet files need pyarrow: run pip install "d2l[qa]".') from error
    number = 0
    with path.open("rb") as file:
        try:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
        except pyarrow.ArrowException as error:
            raise UserError(f"{path} is damaged after row {number} ({error}): copy it again.") from error


def _tfds_rows(name: str | pathlib.Path, split: str) -> Iterator[tuple[str, Row]]:
    """Rows of a registered set (downloaded where it is not there yet) or of the folder of a prepared one."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError('tensorflow-datasets is not installed: run pip install "d2l[qa]".') from error
    try:
        if isinstance(name, pathlib.Path):
            builder = tfds.builder_from_directory(name)
            known = {SPLIT_NAMES.get(given): given for given in builder.info.splits}
            source = builder.as_data_source(known.get(split, split))
        else:
            known = {SPLIT_NAMES.get(given): given for given in tfds.builder(name).info.splits}
            source = tfds.data_source(name, split=known.get(split, split))
    except Exception as error:  # of a download, of a registry, of a format: a class of its own each
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"tensorflow-datasets cannot give {split} of {name} ({reason}): prepare it first.") from error
    for number in range(len(source)):
        yield f"{name} ({split}), row {number + 1}", _plain(source[number])


def _plain(value: Any) -> Any:
    """Bytes as text, numpy arrays and scalars as Python's."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _fetch(name: str) -> pathlib.Path:
    """The folder of a data set of the Hugging Face hub, fetched where it is not in the cache."""
    owner, _, rest = name.partition("/")
    repo, _, folder = rest.partition("/")
    import huggingface_hub

    try:
        root = huggingface_hub.snapshot_download(
            f"{owner}/{repo}", repo_type="dataset", allow_patterns=f"{folder}/*" if folder else None
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the hub gives no data set {owner}/{repo} ({reason}): check the name, or give a folder."
        ) from error
    return pathlib.Path(root, folder)
