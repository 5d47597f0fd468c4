"""Dumps of a MediaWiki: prose of articles alone; damaged and malicious ones are one sentence."""

import bz2
import gzip

import pytest

from d2l.data.wikipedia import read_wikipedia
from d2l.errors import UserError

FIRST = "The lake of '''Hollow''' was dug by [[monk|the monks]] of [[Saint Gall]] in the year 1204 for carps."
SECOND = "It is {{convert|3|km}} wide, and nobody has seen its ground, since the water is ''brown'' in summer."
SOURCE = f"""{{{{Infobox lake|name=Hollow}}}}
[[File:Hollow.jpg|thumb|A picture of the lake with a caption that is as long as a paragraph of an article.]]
{FIRST}<ref name="a">A book.</ref>

== History of the lake ==
* [[Carp]], which is an entry of a list that goes on and on for more words than a heading ever has
{{| class="wikitable"
|-
| A cell of a table that could be a sentence of many words but is none at all, as one sees here.
|}}
{SECOND}

[[Category:Lakes that were dug by monks in the thirteenth century of our era.]]
"""
PROSE = (
    "Hollow Lake\n\nThe lake of Hollow was dug by the monks of Saint Gall in the year 1204 for carps.\n\n"
    "It is wide, and nobody has seen its ground, since the water is brown in summer."
)


def page(title, text, ns=0, redirect=""):
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return f"<page><title>{title}</title><ns>{ns}</ns>{redirect}<revision><text>{text}</text></revision></page>"


def dump(*pages):
    return f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{"".join(pages)}</mediawiki>'


WHOLE = dump(
    page("Talk:Hollow Lake", FIRST, ns=1),
    page("Hollow", "#REDIRECT [[Hollow Lake]]", redirect='<redirect title="Hollow Lake" />'),
    page("Hollow Lake", SOURCE),
    page("Empty", ""),
    page("Second", FIRST),
)


@pytest.mark.parametrize(("name", "pack"), [("a.xml", bytes), ("a.xml.bz2", bz2.compress), ("a.xml.gz", gzip.compress)])
def test_prose_of_articles_alone(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(WHOLE.encode()))
    first, second = read_wikipedia(tmp_path / name)
    assert first.context == PROSE
    assert (first.id, first.source, first.queries) == ("Hollow Lake", "wikipedia", ())
    assert second.context == "Second\n\n" + PROSE.split("\n\n")[1]


def test_titles_decide_splits(tmp_path):
    pages = [page(f"Lake {i}", FIRST) for i in range(200)]
    (tmp_path / "a.xml").write_text(dump(*pages))
    (tmp_path / "b.xml").write_text(dump(*reversed(pages)))
    splits = {record.id: record.split for record in read_wikipedia(tmp_path / "a.xml")}
    assert splits == {record.id: record.split for record in read_wikipedia(tmp_path / "b.xml")}
    assert len(splits) == 200 and set(splits.values()) == {"train", "validation", "test"}


BOMB = '<!DOCTYPE a [<!ENTITY b "lol"><!ENTITY c "&b;&b;&b;">]><mediawiki><page><title>&c;</title></page></mediawiki>'


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("none.xml", None, "cannot be read (No such file"),
        ("empty.xml", b"", "cannot be read (no element found"),
        ("cut.xml", WHOLE.encode()[:-300], "cannot be read (unclosed token|cannot be read (no element"),
        ("cut.xml.bz2", bz2.compress(WHOLE.encode())[:-20], "cannot be read (Compressed file ended"),
        ("text.xml.bz2", b"no bzip2 at all", "cannot be read (Invalid data stream"),
        ("bomb.xml", BOMB.encode(), "cannot be read ("),
        ("other.xml", b"<html><body>Hello</body></html>", "holds no article"),
        ("redirects.xml", dump(page("Talk", FIRST, ns=1)).encode(), "holds no article"),
    ],
)
def test_what_is_no_dump_is_refused(tmp_path, name, data, sentence):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        list(read_wikipedia(tmp_path / name))
    assert any(part in str(caught.value) for part in sentence.split("|")), caught.value
    assert str(caught.value).count(". ") == 0 and "give a" in str(caught.value)
