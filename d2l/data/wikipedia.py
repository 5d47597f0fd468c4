"""Articles of a MediaWiki dump (`pages-articles.xml`, as Wikipedia's) as plain text."""

import bz2
import contextlib
import gzip
import pathlib
from collections.abc import Iterator
from typing import IO

from d2l.data.record import Record
from d2l.data.split import split_of
from d2l.errors import UserError

OPENERS = {".bz2": bz2.open, ".gz": gzip.open}
ARTICLES = "0"  # the namespace of articles; others are talk, users, files
NOT_PROSE = ("ref", "table", "gallery", "math")
MIN_WORDS = 12  # a line with fewer is a heading, an entry of a list or a cell of a table


def read_wikipedia(path: str | pathlib.Path) -> Iterator[Record]:
    """Articles as records without queries, in the order of the dump; an article's title decides its split.

    An article is its title and its paragraphs. Templates, references, pictures, tables, headings and lists are left
    out, as are redirects, pages that are no articles and articles without a paragraph. The dump is read as a stream.

    Args:
      path: of a dump, plain or packed by bzip2 or gzip.

    Raises:
      UserError: the file cannot be read, is no dump or is cut off, holds no article, or a package is missing.
    """
    try:
        import mwparserfromhell  # noqa: F401
        from defusedxml import ElementTree
    except ImportError as error:
        raise UserError(f'reading a dump needs {error.name}: run pip install "d2l[documents]".') from error
    path = pathlib.Path(path)
    given = 0
    with _readable(path), OPENERS.get(path.suffix, open)(path, "rb") as file:
        for title, source in _pages(ElementTree, file):
            if paragraphs := _paragraphs(source):
                given += 1
                text = "\n\n".join([title, *paragraphs])
                yield Record(title, text, (), "wikipedia", split_of(f"wikipedia {title}"))
    if not given:
        raise UserError(f"{path} holds no article: give a dump of a MediaWiki, like enwiki-pages-articles.xml.bz2.")


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    import xml.etree.ElementTree as ElementTree  # for the type of its errors; defusedxml parses, and raises ValueError

    try:
        yield
    except (OSError, EOFError, ValueError, ElementTree.ParseError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path} cannot be read ({reason}): give a whole dump of a MediaWiki.") from error


def _pages(ElementTree, file: IO[bytes]) -> Iterator[tuple[str, str]]:
    """Title and wikitext of each article."""
    root = None
    for event, element in ElementTree.iterparse(file, events=("start", "end"), forbid_dtd=True):
        root = element if root is None else root
        if event == "end" and element.tag.rpartition("}")[2] == "page":
            if element.findtext("{*}ns", ARTICLES) == ARTICLES and element.find("{*}redirect") is None:
                yield element.findtext("{*}title", ""), element.findtext("{*}revision/{*}text") or ""
            root.clear()  # pages that were read


def _paragraphs(source: str) -> list[str]:
    import mwparserfromhell

    code = mwparserfromhell.parse(source, skip_style_tags=True)
    links = code.filter_wikilinks(matches=lambda link: ":" in str(link.title))  # pictures, categories, other languages
    for node in links + code.filter_tags(matches=lambda tag: str(tag.tag) in NOT_PROSE):
        with contextlib.suppress(ValueError):  # it stood within one that is gone
            code.remove(node)
    lines = (" ".join(line.replace("'''", "").replace("''", "").split()) for line in str(code.strip_code()).split("\n"))
    return [line for line in lines if len(line.split()) >= MIN_WORDS and line[-1] in '.!?"']
