"""Documents of every kind give their text; what cannot be read is named and left out."""

import gzip
import logging

import pytest

from d2l.data.documents import read_document, read_documents
from d2l.data.readers import Skipped
from d2l.errors import UserError
from tests.data.files_of_each_kind import archive, chapter, docx, epub, pdf

PAGE = """<!DOCTYPE html><html><head><meta charset="iso-8859-1"><title>Rivers</title><style>p {top: 0}</style></head>
<body><nav><a href="/">Home</a></nav><main><h2>The Rhône</h2><p>It is <b>813 km</b> <a href="x">long</a>.</p>
<ul><li>Geneva</li><li>Lyon</li></ul><table><tr><th>town</th><th>km</th></tr><tr><td>Lyon</td><td>500</td></tr></table>
<script>alert("no")</script></main><footer>Imprint</footer></body></html>"""


def read(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_document(path).text


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "Makefile", "a.rs"])
def test_text_and_source_code_stay_as_they_are(tmp_path, name):
    text = "# naïve\n\n\n    def f(x):\n        return x  # <html>\n"
    assert read(tmp_path / name, text) == text
    assert read(tmp_path / name, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()) == text


def test_html_without_what_frames_the_page(tmp_path):
    expected = (
        "# Rivers\n\n## The Rhône\n\nIt is **813 km** long.\n\n- Geneva\n- Lyon\n\n"
        "| town | km |\n| --- | --- |\n| Lyon | 500 |"
    )
    assert read(tmp_path / "a.html", PAGE.encode("latin-1")) == expected
    assert read(tmp_path / "without-suffix", PAGE.encode("latin-1")) == expected
    assert read(tmp_path / "c.html.gz", gzip.compress(PAGE.encode("latin-1"))) == expected
    assert read(tmp_path / "b.htm", "<p>Only a <i>paragraph</i>") == "Only a *paragraph*"


def test_pdf_page_by_page(tmp_path, caplog):
    text = read(tmp_path / "a.pdf", pdf(["The first page.\nIts second line.", "The second page."]))
    assert text == "The first page.\nIts second line.\n\nThe second page."
    assert not caplog.records
    text = read(tmp_path / "b.pdf", pdf(["One.", "", "Three."]))
    assert text.split() == ["One.", "Three."]
    assert f"{tmp_path}/b.pdf, page 2 has no text" in caplog.text


def test_a_damaged_pdf_page_is_named_and_the_others_stay(tmp_path, caplog):
    data = pdf(["One page.", "Another page.", "A third page."])
    broken = data.replace(b"(Another page.) Tj", b"(Another page.  Tj")  # a string without an end
    assert broken != data
    assert "One page." in (text := read(tmp_path / "a.pdf", broken)) and "A third page." in text
    assert "page 2" in caplog.text and "page 1" not in caplog.text and "page 3" not in caplog.text


def test_docx_with_headings_and_tables(tmp_path):
    data = docx("Rivers", ["The Rhône is long.", "It ends in the sea."], [["town", "km"], ["Lyon", "500"]])
    text = read(tmp_path / "a.docx", data)
    assert text.startswith("# Rivers\n\nThe Rhône is long.\n\nIt ends in the sea.\n\n|")
    assert "| Lyon | 500 |" in text


def test_epub_in_the_order_of_its_spine(tmp_path, caplog):
    chapters = {"two words.xhtml": chapter("Two", "Second."), "one.xhtml": chapter("One", "First é.")}
    book = epub(chapters, listed=["one.xhtml", "two%20words.xhtml"])
    assert read(tmp_path / "a.epub", book) == "# One\n\nFirst é.\n\n# Two\n\nSecond."
    assert not caplog.records
    chapters["locked.xhtml"] = b"\x93\x07<\xff\xd8"
    listed = ["gone.xhtml", "one.xhtml", "locked.xhtml"]
    assert read(tmp_path / "b.epub", epub(chapters, listed=listed, encrypted="locked.xhtml")) == "# One\n\nFirst é."
    assert "chapter gone.xhtml cannot be read" in caplog.text
    assert "chapter locked.xhtml is encrypted" in caplog.text


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.txt", b" \n\t", "is empty"),
        ("a.txt", b"text\0binary", "is binary"),
        ("a.txt", "naïve".encode("latin-1"), r"is not UTF-8 \(byte 2\)"),
        ("a.html", b"<html><body><script>x()</script></body></html>", "is empty"),
        ("a.pdf", b"%PDF-1.7\nno more", "is a PDF that cannot be opened"),
        ("a.pdf", pdf([""]), "is empty; .*page 1 has no text"),
        ("a.docx", docx("a", ["b"], [["c"]])[:300], "is a damaged archive"),
        ("a.docx", archive({"word/document.xml": "<w:document"}), "is a DOCX that cannot be opened"),
        (
            "a.epub",
            archive({"META-INF/container.xml": "<a/>"}),
            "is an EPUB whose list of chapters cannot be read .*names no package",
        ),
        ("a.txt.gz", gzip.compress(b"text", mtime=0)[:-6], "is a damaged archive"),
        ("a.zip", archive({"a.txt": "text"}), "is an archive, neither DOCX nor EPUB"),
    ],
)
def test_files_without_text_are_named(tmp_path, name, data, why):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{tmp_path}/{name} {why}.*give a text"):
        read_document(tmp_path / name)


def test_folders_and_globs(tmp_path, caplog):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("b.md", "a.txt", "sub/c.py", ".git/config", ".hidden"):
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "sub" / "picture.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "link.md").symlink_to(tmp_path / "b.md")
    skipped = []
    documents = list(read_documents([tmp_path], skipped))
    assert [d.name.removeprefix(f"{tmp_path}/") for d in documents] == ["a.txt", "b.md", "sub/c.py"]
    assert documents[2].text == "text of sub/c.py"
    assert skipped == [Skipped(f"{tmp_path}/sub/picture.png", "is binary, not text")]
    assert f"{tmp_path}/sub/picture.png is binary" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING

    def names(*places):
        return [d.name.removeprefix(f"{tmp_path}/") for d in read_documents([f"{tmp_path}/{p}" for p in places])]

    assert names("**/*.py", "*.md") == ["sub/c.py", "b.md"]
    assert names("sub", "sub/c.py", "a.txt") == ["sub/c.py", "a.txt"]
    assert names(".hidden", "s*") == [".hidden", "sub/c.py"]


def test_places_that_give_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no file or folder .*none.txt"):
        list(read_documents([tmp_path / "none.txt"]))
    with pytest.raises(UserError, match="no file matches"):
        list(read_documents([tmp_path / "*.pdf"]))
    with pytest.raises(UserError, match=r"none of 0 file\(s\)"):
        list(read_documents([tmp_path]))
    (tmp_path / "x.bin").write_bytes(b"\0")
    with pytest.raises(UserError, match=r"none of 1 file\(s\).*x.bin is binary"):
        list(read_documents([tmp_path]))
