"""The corpus of installed documents: real ones, the same on every run, whole groups in one split."""

import collections
import gzip
import shutil

import pytest

from d2l.data import corpus, installed
from d2l.data.corpus import read_corpus
from d2l.data.installed import Listed
from d2l.data.readers import Unreadable
from d2l.data.split import split_of
from d2l.errors import UserError


@pytest.fixture(scope="module")
def python_records():
    return list(read_corpus(["python"], limit=60))


def test_documents_of_python(python_records):
    assert len(python_records) == len({record.id for record in python_records}) == 60
    assert list(read_corpus(["python"], limit=10)) == python_records[:10]
    groups = {listed.name: listed.group for listed in installed.python_documents()}
    splits = collections.defaultdict(set)
    for record in python_records:
        assert record.source == "python" and not record.queries and len(record.context) >= corpus.MIN_CHARS
        splits[groups[record.id]].add(record.split)
    assert all(len(names) == 1 for names in splits.values()) and len(splits) > 10


def test_docstrings_without_importing(tmp_path):
    path = tmp_path / "m.py"
    path.write_text(
        '"""About m."""\nraise SystemExit\n\n\nclass C:\n    """A class."""\n\n    def f(self, x=1):\n'
        '        """A method."""\n'
        "\n\ndef _hidden():\n    '''No.'''\n\n\nasync def g(*, y):\n    '''A function.'''\n"
    )
    assert installed._docstrings(path, "m") == (
        "Module m\n\nAbout m.\n\nm.C\nA class.\n\nm.C.f(self, x=1)\nA method.\n\nm.g(*, y)\nA function."
    )
    path.write_text("print 'old'")
    with pytest.raises(Unreadable, match="no Python of this version"):
        installed._docstrings(path, "m")


@pytest.mark.skipif(shutil.which("groff") is None, reason="manual pages need groff")
def test_manual_pages(tmp_path, monkeypatch):
    (tmp_path / "man1").mkdir()
    page = (
        '.TH LS 1 "2026" "a" "b"\n.SH NAME\nls \\- list naïve \\fBfiles\\fP\n.SH OPTIONS\n' + "A long sentence. " * 30
    )
    (tmp_path / "man1" / "ls.1.gz").write_bytes(gzip.compress(page.encode()))
    (tmp_path / "man1" / "dir.1.gz").write_bytes(gzip.compress(b".so man1/ls.1\n"))
    (tmp_path / "man1" / "vdir.1.gz").symlink_to("ls.1.gz")
    monkeypatch.setattr(installed, "MAN", tmp_path)
    alias, page = installed.man_pages()
    assert (page.name, page.group) == ("man1/ls.1", "ls")
    assert page.read() == "NAME\nls - list naïve files\n\nOPTIONS\n" + "A long sentence. " * 29 + "A long sentence."
    with pytest.raises(Unreadable, match="alias"):
        alias.read()


def test_what_is_left_out_is_counted(monkeypatch, caplog):
    long = "Words that say something. " * 40

    def refuse():
        raise Unreadable("is locked")

    listed = [Listed(f"d{i}", "g", lambda i=i: f"{long}{i}") for i in range(40)]
    listed += [
        Listed("short", "s", lambda: "Too short."),
        Listed("table", "t", lambda: "12 | 34\n" * 200),
        Listed("locked", "l", refuse),
        Listed("one", "o", lambda: long + "x"),
        Listed("two", "p", lambda: long.replace(" ", "\n") + "x"),
    ]
    monkeypatch.setitem(corpus.KINDS, "made", lambda: iter(listed))
    with caplog.at_level("INFO"):
        records = list(read_corpus(["made"]))
    assert len(records) == corpus.MOST_OF_A_GROUP + 1
    assert "locked is locked" in caplog.text
    for reason in ("10 more of the same group", "2 too short", "1 not readable", "1 seen before"):
        assert reason in caplog.text
    assert [record.id for record in records] != sorted(record.id for record in records)


def test_kinds_that_give_nothing(monkeypatch):
    with pytest.raises(UserError, match="no kind of documents 'web': give some of man, python, packages"):
        list(read_corpus(["python", "web"]))
    monkeypatch.setitem(corpus.KINDS, "man", lambda: iter([]))
    with pytest.raises(UserError, match="no documents of the kind man"):
        list(read_corpus(["man"]))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(corpus.KINDS, "man", installed.man_pages)
    with pytest.raises(UserError, match="the kind man needs groff: install it, or leave the kind out"):
        list(read_corpus(["man"]))


def test_splits_have_their_shares():
    counts = collections.Counter(split_of(f"name {i}") for i in range(5000))
    assert counts["test"] == pytest.approx(250, abs=60) and counts["validation"] == pytest.approx(250, abs=60)
    assert split_of("python numpy") == split_of("python numpy")
