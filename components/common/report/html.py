"""The few HTML forms of a report: escaped text, tables, inlined pictures."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from foundry.storage import without_credentials

FOLDER = Path(__file__).parent
_SORTABLE = "sortable"


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
    sort: float | str | None = None
    """What a sortable table sorts it by, where that is not its text; the empty text is a blank."""


def number(value: object, css: str = "", sort: float | None = None) -> Cell:
    """A right-aligned cell; ``sort`` is its value where the text does not begin with it (units that differ)."""
    return Cell(value, f"n {css}".strip(), sort=sort)


@dataclass(frozen=True)
class Row:
    """A table row and its CSS class."""

    cells: Sequence[object]
    css: str = ""


def table(
    head: Sequence[object], rows: Sequence[Row | Sequence[object]], css: str = "", *, sortable: bool = False
) -> Markup:
    """A table that scrolls sideways where it is wider than the page; ``css`` is its class.

    ``sortable``: where scripts run, the heads of its columns are buttons that sort the rows: upwards, downwards, then
    as the page has them. A column whose cells all begin with a number (or whose :attr:`Cell.sort` is one) is sorted by
    value, any other as text; blank cells and dashes come last either way, rows of class ``total`` stay at the end.
    """
    body = "".join(_row(row if isinstance(row, Row) else Row(row), "td") for row in rows)
    top = f"<thead>{_row(Row(head), 'th')}</thead>" if head else ""
    css = f"{_SORTABLE} {css}".strip() if sortable else css
    kind = f' class="{css}"' if css else ""
    return Markup(f'<div class="wide"><table{kind}>{top}<tbody>{body}</tbody></table></div>')


def _row(row: Row, tag: str) -> str:
    cells = []
    for cell in row.cells:
        full = cell if isinstance(cell, Cell) else Cell(cell)
        css = f' class="{full.css}"' if full.css else ""
        style = f' style="{full.style}"' if full.style else ""
        sort = f' data-sort="{escape(str(full.sort))}"' if full.sort is not None else ""
        cells.append(f"<{tag}{css}{style}{sort}>{text(full.content)}</{tag}>")
    css = f' class="{row.css}"' if row.css else ""
    return f"<tr{css}>{''.join(cells)}</tr>"


def paragraph(content: object, css: str = "") -> Markup:
    """A paragraph."""
    attribute = f' class="{css}"' if css else ""
    return Markup(f"<p{attribute}>{text(content)}</p>")


def figure(
    png: bytes, alternative: str, caption: object = "", width: int | None = None, *, scrolls: bool = False
) -> Markup:
    """An inlined PNG with a caption; ``width`` in CSS pixels.

    Where the page is narrower than the picture, it is made smaller, or ``scrolls`` sideways (sheets of many tiles).
    """
    source = base64.b64encode(png).decode()
    size = f' style="width:{width}px"' if width else ""
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    image = f'<img alt="{escape(alternative)}"{size} src="data:image/png;base64,{source}">'
    if scrolls:
        image = f'<div class="wide">{image}</div>'
    return Markup(f"<figure>{image}{below}</figure>")


@dataclass(frozen=True)
class Picture:
    """A picture inside the page and the size at which it is stored."""

    uri: str
    """``data:image/...;base64,...``"""
    width: int
    height: int


def frame(picture: Picture | None, alternative: str, css: str = "") -> Markup:
    """A square with a small picture in it; without one it says so. ``css`` is a further class."""
    inside = "<i>no picture</i>"
    if picture is not None:
        size = f'width="{picture.width}" height="{picture.height}"'
        inside = f'<img alt="{escape(alternative)}" {size} loading="lazy" src="{picture.uri}">'
    return Markup(f'<div class="{f"frame {css}".strip()}">{inside}</div>')


def thumb(frames: Sequence[Markup], lines: Sequence[object] = ()) -> Markup:
    """One frame, or two abreast, over the ``lines`` of a caption."""
    below = f"<figcaption>{'<br>'.join(text(line) for line in lines if line)}</figcaption>" if lines else ""
    inside = frames[0] if len(frames) == 1 else f'<div class="pair">{"".join(frames)}</div>'
    return Markup(f'<figure class="thumb">{inside}{below}</figure>')


def thumbs(figures: Sequence[Markup], css: str = "") -> Markup:
    """Figures of :func:`thumb` in rows as wide as the page."""
    return Markup(f'<div class="{f"thumbs {css}".strip()}">{"".join(figures)}</div>')


def name(value: str, longest: int = 160) -> Markup:
    """A name that somebody else gave, as text that cannot disturb the page: characters that do not print (also those
    that turn the direction of writing) as escapes, no credentials of URLs, the middle left out where it is long."""
    return Markup(f"<bdi>{escape(plain(value, longest))}</bdi>")


def plain(value: str, longest: int = 160) -> str:
    """:func:`name` for attributes and other places without markup; not escaped."""
    shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in without_credentials(value))
    half = (longest - 1) // 2
    return shown if len(shown) <= longest else f"{shown[:half]}…{shown[-half:]}"


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
    scripts: Sequence[str] = ()
    """JavaScript that the body needs; the page holds each text once, however many sections ask for it."""


def page(title: str, head: Markup, sections: Sequence[Section]) -> str:
    """One self-contained HTML document: style, pictures and scripts inside, nothing fetched.

    A page without sortable tables and without sections that need a script has none. Its content security policy lets a
    browser load no other file and run no other script, whatever the texts of the page may hold.
    """
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#{section.anchor}">{text(section.title)}</a>' for section in sections)
    body = "\n".join(f'<h2 id="{section.anchor}">{text(section.title)}</h2>\n{section.body}' for section in sections)
    wanted = [script for section in sections for script in section.scripts]
    if f'<table class="{_SORTABLE}' in body or f'<table class="{_SORTABLE}' in head:
        wanted.insert(0, (FOLDER / "sorting.js").read_text(encoding="utf-8"))
    scripts = list(dict.fromkeys(wanted))
    running = "".join(f"<script>{script}</script>\n" for script in scripts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{text(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>\n{style}</style>\n</head>\n'
        f"<body>\n{head}\n<nav>{links}</nav>\n{body}\n{running}</body>\n</html>\n"
    )


def _policy(scripts: Sequence[str]) -> str:
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
