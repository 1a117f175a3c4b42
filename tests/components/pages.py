"""What a browser would make of a report."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

VOID = ("img", "meta", "br", "path")


class Page(HTMLParser):
    """Collects what a browser would fetch, run or show; every element that is opened has to be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[dict[str, str]] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        """The cells of every table row."""
        self.open: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.attributes |= set(values)
        if tag == "img":
            self.images.append(values)
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
    """Nothing is run or fetched; pictures are inside and have words; links lead into the page."""
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    assert not {name for name in page.attributes if name.startswith("on")}
    assert all(image["src"].startswith("data:image/") and image["alt"] for image in page.images)
    assert "http://" not in html and "https://" not in html and "url(" not in html
    anchors = {link[1:] for link in page.links if link.startswith("#")}
    assert anchors and all(f'id="{anchor}"' in html for anchor in anchors)
