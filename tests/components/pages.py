"""What a browser makes of a report: read by a parser (:func:`read_page`), shown by Chromium (:func:`assert_shown`)."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests.components.browser import Tab, browser

VOID = ("img", "meta", "br", "path")
FETCHING = ("fetch(", "XMLHttpRequest", "import(", "WebSocket", "EventSource", "sendBeacon", "eval(", "Worker(")
WIDTHS = (1400, 400)
"""CSS pixels of a wide window and of a phone."""


class Page(HTMLParser):
    """Collects what a browser would fetch, run or show; every element that is opened has to be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[dict[str, str]] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.words: list[str] = []
        self.scripts: list[str] = []
        """What the scripts of the page hold."""
        self.policy = ""
        """The content security policy."""
        self.rows: list[list[str]] = []
        """The cells of every table row."""
        self.open: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.attributes |= set(values)
        if tag == "img":
            self.images.append(values)
        if tag == "script":
            assert "src" not in values
            self.scripts.append("")
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"]
        if "href" in values:
            self.links.append(values["href"])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def read_page(folder: Path, name: str = "report.html") -> tuple[Page, str]:
    """The parsed page and its words."""
    page = Page()
    page.feed((folder / name).read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page, " ".join(" ".join(page.words).split())


def assert_self_contained(page: Page, html: str) -> None:
    """Nothing is fetched and no script runs but those that the page's policy names by their content; pictures are
    inside and have words; links lead into the page."""
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not {name for name in page.attributes if name.startswith("on")}
    assert all(image["src"].startswith("data:image/") and image["alt"] for image in page.images)
    assert "http://" not in html and "https://" not in html and "url(" not in html
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    assert page.policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
    assert not [word for word in FETCHING for script in page.scripts if word in script]
    anchors = {link[1:] for link in page.links if link.startswith("#")}
    assert anchors and all(f'id="{anchor}"' in html for anchor in anchors)


def assert_shown(path: Path, widths: Sequence[int] = WIDTHS, tab: Tab | None = None) -> None:
    """``path`` in Chromium, at every width of a window: it is no wider than the window, every picture loads, nothing is
    fetched, the console has no error; every sortable table sorts by every column, by a click and by the keyboard.

    All that is folded is unfolded first. ``tab`` is a browser's that runs already; without one the test is skipped
    where there is no Chromium.
    """
    if tab is None:
        with browser() as tab:
            return assert_shown(path, widths, tab)
    for width in widths:
        tab.open(path, width)
        tab.value("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        broken = tab.value(_BROKEN_IMAGES)
        assert broken == [], f"{path.name} at {width} px: pictures that do not load: {broken}"
        wide = tab.value(_TOO_WIDE)
        assert not wide["by"], f"{path.name} is {wide['by']} px wider than {width} px because of {wide['what']}"
        if width == widths[-1]:
            assert_tables_sort(tab)
        assert tab.requests == [], f"{path.name} at {width} px fetches {tab.requests}"
        assert tab.errors == [], f"{path.name} at {width} px: {tab.errors}"


def assert_tables_sort(tab: Tab) -> None:
    """Every sortable table of the page shown sorts by every column: upwards, downwards, back."""
    for number in range(tab.value("document.querySelectorAll('table.sortable').length")):
        table = f"document.querySelectorAll('table.sortable')[{number}]"
        heads = tab.value(f"[...{table}.tHead.rows[0].cells].map(each => each.textContent.trim())")
        first = _cells(tab, table)
        for column, head in enumerate(heads):
            if not head:
                continue
            button = f"{table}.tHead.rows[0].cells[{column}].querySelector('button')"
            for direction in ("ascending", "descending", "none"):
                if column == 0:
                    tab.value(f"{button}.focus()")
                    tab.press("Enter", 13, "\r")
                else:
                    tab.value(f"{button}.click()")
                states = tab.value(f"[...{table}.tHead.rows[0].cells].map(each => each.getAttribute('aria-sort'))")
                wanted = [
                    direction if place == column else "none" if title else None for place, title in enumerate(heads)
                ]
                assert states == wanted, f"{head}: aria-sort {states}"
                rows = _cells(tab, table)
                if direction == "none":
                    assert rows == first, f"{head}: the rows do not come back to where they were"
                else:
                    _assert_sorted(first, rows, column, direction == "descending", head)


def _cells(tab: Tab, table: str) -> list[dict[str, Any]]:
    """Of every row: its cells as they are sorted, its text, whether it stays at the end."""
    return tab.value(
        f"[...{table}.tBodies[0].rows].map(row => ({{text: row.textContent, total: row.classList.contains('total'), "
        "cells: [...row.cells].map(cell => (cell.dataset.sort ?? cell.textContent).trim())}))"
    )


def _assert_sorted(first: list[dict[str, Any]], rows: list[dict[str, Any]], column: int, down: bool, head: str) -> None:
    assert sorted(row["text"] for row in rows) == sorted(row["text"] for row in first), (
        f"{head}: other rows than before"
    )
    totals = [row["text"] for row in first if row["total"]]
    assert [row["text"] for row in rows[len(rows) - len(totals) :]] == totals
    shown = [row["cells"][column] if column < len(row["cells"]) else "" for row in rows[: len(rows) - len(totals)]]
    filled = [text for text in shown if text.strip("-–— −").lower() not in ("", "nan", "none", "n/a")]
    assert shown[: len(filled)] == filled, f"{head}: blanks do not come last in {shown}"
    numbers = [_value(text) for text in filled]
    values = [value for value in numbers if value is not None]
    if len(values) == len(filled):
        assert values == sorted(values, reverse=down), f"{head}: {filled}"
    elif all(re.fullmatch(r"[A-Za-z]+", text) for text in filled):  # where every alphabet has one order
        lower = [text.lower() for text in filled]
        assert lower == sorted(lower, reverse=down), f"{head}: {filled}"


def _value(text: str) -> float | None:
    found = re.match(r"[<>=≥≤~±\s]*([+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)", text.replace("−", "-").replace(",", ""), re.I)
    return float(found.group(1)) if found else None


_BROKEN_IMAGES = """Promise.all([...document.images].map(async (image) => {
  image.loading = "eager";
  try { await image.decode(); } catch { return image.alt || image.src.slice(0, 80); }
  return image.naturalWidth ? null : image.alt;
})).then((found) => found.filter((each) => each !== null))"""

_TOO_WIDE = """(() => {
  const width = document.documentElement.clientWidth;
  const by = document.documentElement.scrollWidth - width;
  const scrolls = (each) => {
    for (let above = each.parentElement; above; above = above.parentElement) {
      if (getComputedStyle(above).overflowX !== "visible" && above !== document.body) return true;
    }
    return false;
  };
  const over = by > 0 ? [...document.body.querySelectorAll("*")]
    .filter((each) => each.getBoundingClientRect().right > width + 0.5 && !scrolls(each)) : [];
  const told = (each) => `<${each.tagName.toLowerCase()} class="${each.getAttribute("class") ?? ""}">`
    + each.textContent.trim().slice(0, 40);
  return { by, what: over.slice(0, 4).map(told) };
})()"""
