"""The text of one file: plain text and source code as they are, HTML, PDF, DOCX and EPUB as Markdown or plain text.

What a file is, its first bytes decide before its name does; gzip around it is taken off. Readers of other formats
than text are imported when one is met (`pip install "d2l[documents]"`).
"""

import contextlib
import gzip
import io
import pathlib
import posixpath
import re
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from d2l.errors import UserError

HTML_SUFFIXES = (".html", ".htm", ".xhtml")
# Parts of a web page that are not what it says.
HTML_NOISE = ("script", "style", "noscript", "template", "svg", "nav", "header", "footer", "aside", "form", "button")
# Where an EPUB says which file lists its chapters, and which are encrypted.
CONTAINER, ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
XML_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
LINE_ENDS = re.compile(r"[ \t\r\f\xa0]*\n")
EMPTY_LINES = re.compile(r"\n{3,}")


class Skipped(NamedTuple):
    """A file, page or chapter that was left out.

    Attributes:
      where: path, and the page or chapter in it.
      why: continues a sentence that begins with `where`: `is binary, not text`.
    """

    where: str
    why: str


class Unreadable(Exception):
    """A whole file that gives no text; the message is a `Skipped.why`."""


def read_text(path: pathlib.Path) -> tuple[str, list[Skipped]]:
    """Text of a file, and the pages or chapters that had to be left out.

    Raises:
      Unreadable: the file gives no text at all.
      UserError: a reader that the format needs is not installed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror})") from error
    name = path.name.lower()
    if data.startswith(b"\x1f\x8b"):
        with _readable("is a damaged archive"):
            data, name = gzip.decompress(data), name.removesuffix(".gz")
    skipped: list[Skipped] = []
    text = _reader(data, name)(data, str(path), skipped)
    if not text.strip():
        raise Unreadable("; ".join(["is empty", *(f"{where} {why}" for where, why in skipped)]))
    return text, skipped


Reader = Callable[[bytes, str, list[Skipped]], str]


def _reader(data: bytes, name: str) -> Reader:
    head = data[:1024].lstrip(b"\xef\xbb\xbf\0 \t\r\n").lower()
    if b"%pdf-" in head:
        return _read_pdf
    if data.startswith(b"PK\x03\x04"):
        with _readable("is a damaged archive"):
            names = zipfile.ZipFile(io.BytesIO(data)).namelist()
        if "word/document.xml" in names:
            return _read_docx
        if CONTAINER in names:
            return _read_epub
        raise Unreadable("is an archive, neither DOCX nor EPUB")
    if name.endswith(HTML_SUFFIXES) or head.startswith((b"<!doctype html", b"<html")):
        return _read_html
    return _read_plain


def _read_plain(data: bytes, where: str, skipped: list[Skipped]) -> str:
    if b"\0" in data:
        raise Unreadable("is binary, not text")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8 (byte {error.start})") from error


def _read_html(data: bytes, where: str, skipped: list[Skipped]) -> str:
    with _readable("is HTML that cannot be parsed"):
        return _html_to_markdown(data)


def _read_pdf(data: bytes, where: str, skipped: list[Skipped]) -> str:
    with _readable("is a PDF that cannot be opened"):
        import pypdf

        reader = pypdf.PdfReader(io.BytesIO(data))
        count = len(reader.pages)
    pages = []
    for number in range(count):
        try:
            with _readable("cannot be read"):
                pages.append(reader.pages[number].extract_text())
            if not pages[-1].strip():
                raise Unreadable("has no text (a scan, or an empty page)")
        except Unreadable as error:
            skipped.append(Skipped(f"{where}, page {number + 1}", str(error)))
    return _tidy("\n\n".join(pages))


def _read_docx(data: bytes, where: str, skipped: list[Skipped]) -> str:
    with _readable("is a DOCX that cannot be opened"):
        import mammoth

        result = mammoth.convert_to_html(io.BytesIO(data), convert_image=lambda image: [])
        skipped.extend(Skipped(where, f"lacks a part ({m.message})") for m in result.messages if m.type == "error")
        return _html_to_markdown(result.value)


def _read_epub(data: bytes, where: str, skipped: list[Skipped]) -> str:
    with _readable("is an EPUB whose list of chapters cannot be read"):
        from defusedxml import ElementTree

        archive = zipfile.ZipFile(io.BytesIO(data))
        rootfile = ElementTree.fromstring(archive.read(CONTAINER)).find(".//{*}rootfile")
        if rootfile is None:
            raise Unreadable(f"{CONTAINER} names no package file")
        package = rootfile.attrib["full-path"]
        root = ElementTree.fromstring(archive.read(package))
        files = {item.attrib["id"]: item.attrib["href"] for item in root.iterfind("{*}manifest/{*}item")}
        chapters = [files[item.attrib["idref"]] for item in root.iterfind("{*}spine/{*}itemref")]
        encrypted = set()
        if ENCRYPTION in archive.namelist():
            parts = ElementTree.fromstring(archive.read(ENCRYPTION)).iterfind(".//{*}CipherReference")
            encrypted = {urllib.parse.unquote(part.attrib["URI"]) for part in parts}
    texts = []
    for chapter in chapters:
        name = posixpath.normpath(posixpath.join(posixpath.dirname(package), urllib.parse.unquote(chapter)))
        try:
            if name in encrypted:
                raise Unreadable("is encrypted")
            with _readable("cannot be read"):
                texts.append(_html_to_markdown(archive.read(name)))
        except Unreadable as error:
            skipped.append(Skipped(f"{where}, chapter {chapter}", str(error)))
    return "\n\n".join(filter(None, texts))


def _html_to_markdown(data: bytes | str) -> str:
    """What a page says as Markdown: headings, lists and tables stay; links, pictures and what frames the page go."""
    import bs4
    import markdownify

    if isinstance(data, bytes):
        data = bs4.UnicodeDammit(data, is_html=True).unicode_markup or ""
    soup = bs4.BeautifulSoup(XML_DECLARATION.sub("", data), "html.parser")
    page = soup.find("main") or soup.find("article") or soup.body or soup
    for noise in page.find_all(HTML_NOISE):
        noise.decompose()
    converter = markdownify.MarkdownConverter(
        heading_style="ATX", bullets="-", strip=["a", "img"], escape_asterisks=False, escape_underscores=False
    )
    text = _tidy(converter.convert_soup(page))
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    return f"# {title}\n\n{text}" if title and text and not page.find("h1") else text


def _tidy(text: str) -> str:
    """Without white space at the ends of lines, nor more than one empty line in a row."""
    return EMPTY_LINES.sub("\n\n", LINE_ENDS.sub("\n", text)).strip()


@contextlib.contextmanager
def _readable(otherwise: str) -> Iterator[None]:
    """What goes wrong inside is `Unreadable`, whatever it is: parsers of damaged files fail in every way."""
    try:
        yield
    except ImportError as error:
        raise UserError(f'reading this needs {error.name}: run pip install "d2l[documents]".') from error
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Unreadable(f"{otherwise} ({reason})") from error
