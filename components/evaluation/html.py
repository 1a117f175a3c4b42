"""The few HTML forms of a report: escaped text, tables, inlined pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path


class Markup(str):
    """Text that is HTML already."""


def text(value: object) -> Markup:
    """``value`` as HTML text; :class:`Markup` stays as it is."""
    return value if isinstance(value, Markup) else Markup(escape(str(value)))


@dataclass(frozen=True)
class Cell:
    """A table cell: its content, CSS class and style."""

    content: object
    css: str = ""
    style: str = ""


def number(value: object, css: str = "") -> Cell:
    """A right-aligned cell."""
    return Cell(value, f"n {css}".strip())


@dataclass(frozen=True)
class Row:
    """A table row and its CSS class."""

    cells: Sequence[object]
    css: str = ""


def table(head: Sequence[object], rows: Sequence[Row | Sequence[object]], css: str = "") -> Markup:
    """A table that scrolls sideways where it is wider than the page; ``css`` is its class."""
    body = "".join(_row(row if isinstance(row, Row) else Row(row), "td") for row in rows)
    top = f"<thead>{_row(Row(head), 'th')}</thead>" if head else ""
    kind = f' class="{css}"' if css else ""
    return Markup(f'<div class="wide"><table{kind}>{top}<tbody>{body}</tbody></table></div>')


def _row(row: Row, tag: str) -> str:
    cells = []
    for cell in row.cells:
        full = cell if isinstance(cell, Cell) else Cell(cell)
        css = f' class="{full.css}"' if full.css else ""
        style = f' style="{full.style}"' if full.style else ""
        cells.append(f"<{tag}{css}{style}>{text(full.content)}</{tag}>")
    css = f' class="{row.css}"' if row.css else ""
    return f"<tr{css}>{''.join(cells)}</tr>"


def paragraph(content: object, css: str = "") -> Markup:
    """A paragraph."""
    attribute = f' class="{css}"' if css else ""
    return Markup(f"<p{attribute}>{text(content)}</p>")


def figure(png: bytes, alternative: str, caption: object = "", width: int | None = None) -> Markup:
    """An inlined PNG with a caption; ``width`` in CSS pixels."""
    source = base64.b64encode(png).decode()
    size = f' style="width:{width}px"' if width else ""
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    image = f'<img alt="{escape(alternative)}"{size} src="data:image/png;base64,{source}">'
    return Markup(f"<figure>{image}{below}</figure>")


def code(value: object) -> Markup:
    """Monospaced text."""
    return Markup(f"<code>{text(value)}</code>")


def join(parts: Sequence[Markup]) -> Markup:
    """Parts after one another."""
    return Markup("\n".join(parts))


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading that the navigation names."""

    anchor: str
    title: str
    body: Markup


def page(title: str, head: Markup, sections: Sequence[Section]) -> str:
    """One self-contained HTML document: style and pictures inside, no script, no link to anything else."""
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#{section.anchor}">{text(section.title)}</a>' for section in sections)
    body = "\n".join(f'<h2 id="{section.anchor}">{text(section.title)}</h2>\n{section.body}' for section in sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{text(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>\n{style}</style>\n</head>\n'
        f"<body>\n{head}\n<nav>{links}</nav>\n{body}\n</body>\n</html>\n"
    )
