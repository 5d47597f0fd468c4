"""A page of headings, paragraphs, tables and figures, as Markdown and as one HTML file with the figures inside."""

import base64
import dataclasses
import html
import pathlib
import re
from collections.abc import Sequence

CODE = re.compile("`([^`]*)`")
STYLE = """body { font: 15px/1.5 sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .7rem; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
img { max-width: 100% }"""


@dataclasses.dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Paragraph:
    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Figure:
    """An image file beside the page."""

    path: pathlib.Path
    caption: str


Block = Heading | Paragraph | Table | Figure


def to_markdown(blocks: Sequence[Block]) -> str:
    """GitHub's Markdown; figures by the name of their file."""
    parts = []
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f"{'#' * level} {text}")
            case Paragraph(text):
                parts.append(text)
            case Figure(path, caption):
                parts.append(f"![{caption}]({path.name})")
            case Table(head, rows):
                lines = [head, ["---"] * len(head), *rows]
                parts.append("\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines))
    return "\n\n".join(parts) + "\n"


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """A page that stands alone."""
    parts = []
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f"<h{level}>{html.escape(text)}</h{level}>")
            case Paragraph(text):
                parts.append(f"<p>{CODE.sub(r'<code>\1</code>', html.escape(text))}</p>")
            case Figure(path, caption):
                data = base64.b64encode(path.read_bytes()).decode()
                parts.append(f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">')
            case Table(head, rows):
                body = "".join(_html_row(row, "td") for row in rows)
                parts.append(f"<table><thead>{_html_row(head, 'th')}</thead><tbody>{body}</tbody></table>")
    top = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html><html lang='en'><head>{top}</head><body>\n" + "\n".join(parts) + "\n</body></html>\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _html_row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
