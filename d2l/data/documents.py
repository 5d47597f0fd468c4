"""Documents of files, folders and globs; what cannot be read is named and left out, never silently."""

import dataclasses
import glob
import logging
import os
import pathlib
from collections.abc import Iterable, Iterator

from d2l.data.readers import Skipped, Unreadable, read_text
from d2l.errors import UserError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Document:
    """A text and where it comes from.

    Attributes:
      name: path of its file, as found from what was given.
    """

    name: str
    text: str


def read_document(path: str | pathlib.Path) -> Document:
    """One file's document; pages or chapters that cannot be read are logged as warnings.

    Raises:
      UserError: the file gives no text; the sentence says why.
    """
    path = pathlib.Path(path)
    try:
        text, skipped = read_text(path)
    except Unreadable as error:
        raise UserError(f"{path} {error}: give a text, HTML, PDF, DOCX or EPUB file with words in it.") from error
    _warn(skipped)
    return Document(str(path), text)


def read_documents(places: Iterable[str | pathlib.Path], skipped: list[Skipped] | None = None) -> Iterator[Document]:
    """The documents of files, folders (with all below them) and globs (`**` too), one after the other.

    A file that is found twice is read once. Hidden files and folders are left alone, unless they are named themselves.

    Args:
      skipped: takes what was left out while the iterator runs; it is also logged as warnings.

    Raises:
      UserError: a place does not exist, a glob finds no file, or, at the end, none of the files gave a text.
    """
    skipped = [] if skipped is None else skipped
    places = [str(place) for place in places]
    read = 0
    for path in _find_files(places, skipped):
        try:
            text, parts = read_text(path)
        except Unreadable as error:
            parts = [Skipped(str(path), str(error))]
        else:
            read += 1
            yield Document(str(path), text)
        _warn(parts)
        skipped.extend(parts)
    if not read:
        first = f"; the first: {skipped[0].where} {skipped[0].why}" if skipped else ""
        raise UserError(f"{', '.join(places)}: none of {len(skipped)} file(s) can be read{first}. Give readable ones.")


def _find_files(places: Iterable[str], skipped: list[Skipped]) -> Iterator[pathlib.Path]:
    """Files of places in the order of the places, sorted below each, none twice."""
    seen: set[str] = set()
    for place in places:
        for path in _files_of(place, skipped):
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                yield path


def _files_of(place: str, skipped: list[Skipped]) -> Iterator[pathlib.Path]:
    if os.path.isdir(place):
        yield from _walk(place, skipped)
    elif os.path.exists(place):
        yield pathlib.Path(place)
    elif glob.has_magic(place):
        found = sorted(glob.glob(os.path.expanduser(place), recursive=True))
        if not found:
            raise UserError(f"no file matches {place}: give a pattern like docs/**/*.md.")
        # Folders match `**` too; they are walked only where nothing else was found.
        files = [path for path in found if not os.path.isdir(path)]
        for path in files or found:
            yield from _files_of(path, skipped)
    else:
        raise UserError(f"there is no file or folder {place}: give one that exists, or a glob.")


def _walk(folder: str, skipped: list[Skipped]) -> Iterator[pathlib.Path]:
    def refuse(error: OSError) -> None:
        skipped.append(Skipped(str(error.filename), f"cannot be read ({error.strerror})"))
        _warn(skipped[-1:])

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield pathlib.Path(parent, name)


def _warn(skipped: Iterable[Skipped]) -> None:
    for where, why in skipped:
        logger.warning("%s %s: left out", where, why)
