"""Pages in a browser: tables sort as they should, and the check of :mod:`tests.components.pages` sees what is wrong."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from components.common.report.html import Markup, Row, Section, figure, number, page, table
from tests.components.browser import Tab, browser
from tests.components.pages import assert_shown, assert_tables_sort


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with browser() as opened:
        yield opened


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (900, 30), "navy").save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, *bodies: str, scripts: tuple[str, ...] = ()) -> Path:
    sections = [Section(f"s{place}", "Section", Markup(body), scripts) for place, body in enumerate(bodies)]
    target = folder / "page.html"
    target.write_text(page("A page", Markup("<h1>A page</h1>"), sections), encoding="utf-8")
    return target


def figures() -> Markup:
    rows = [
        Row(["Teacher, refined", number("1,200.5"), number("3 M", sort=3e6), "b", ""]),
        ["student vit", number("–"), number("900 k", sort=9e5), "A", ""],
        ["Student ü", number("-4"), number(""), "c", ""],
        ["raw pixels", number("≥ 20"), number("2 M", sort=2e6), "b", ""],
        ["champion", number("1e3"), number("1 M", sort=1e6), "B", ""],
        Row(["all", number("0"), number("9 M"), "z", ""], "total"),
    ]
    head = ["Network", number("Value"), number("Size"), "Word", ""]
    return table(head, [row if isinstance(row, Row) else Row(row) for row in rows], sortable=True)


def first_column(tab: Tab) -> list[str]:
    return tab.value(
        "[...document.querySelector('table.sortable').tBodies[0].rows].map(row => row.cells[0].textContent)"
    )


def test_a_page_with_all_forms_is_sound(tab: Tab, tmp_path: Path) -> None:
    sheet = figure(png(), "a sheet", scrolls=True) + figure(png(), "a chart")
    folded = "<details><summary>more</summary>" + figures() + "</details>"
    assert_shown(write(tmp_path, figures(), sheet, folded), tab=tab)
    assert len(tab.value("[...document.querySelectorAll('table.sortable')]")) == 2


def test_rows_sort_by_value_blanks_last_and_stable(tab: Tab, tmp_path: Path) -> None:
    tab.open(write(tmp_path, figures()), 900)
    start = ["Teacher, refined", "student vit", "Student ü", "raw pixels", "champion", "all"]
    assert first_column(tab) == start
    click = "document.querySelectorAll('thead button')[{}].click()"
    tab.value(click.format(1))
    assert first_column(tab) == ["Student ü", "raw pixels", "champion", "Teacher, refined", "student vit", "all"]
    tab.value(click.format(1))
    assert first_column(tab) == ["Teacher, refined", "champion", "raw pixels", "Student ü", "student vit", "all"]
    tab.value(click.format(2))  # 900 k is less than 1 M, and an empty cell is blank
    assert first_column(tab) == ["student vit", "champion", "raw pixels", "Teacher, refined", "Student ü", "all"]
    tab.value(click.format(3))  # by words, without regard to case; equal ones (b, B) keep the order that they had
    assert first_column(tab) == ["student vit", "champion", "raw pixels", "Teacher, refined", "Student ü", "all"]
    tab.value(click.format(3))
    assert first_column(tab) == ["Student ü", "champion", "raw pixels", "Teacher, refined", "student vit", "all"]
    tab.value(click.format(3))
    assert first_column(tab) == start, "the third click is the order of the page"
    assert tab.value("document.querySelectorAll('thead button').length") == 4, "a head without words is no button"


def test_heads_are_reached_and_pressed_by_the_keyboard(tab: Tab, tmp_path: Path) -> None:
    tab.open(write(tmp_path, figures()), 900)
    tab.value("document.querySelector('nav a').focus()")
    tab.press("Tab", 9)
    assert tab.value("document.activeElement.textContent") == "Network"
    tab.press(" ", 32, " ")
    assert first_column(tab)[0] == "champion"
    assert tab.value("document.activeElement.closest('th').getAttribute('aria-sort')") == "ascending"


def test_without_scripts_the_table_is_a_plain_table(tab: Tab, tmp_path: Path) -> None:
    tab.open(write(tmp_path, figures()), 900, scripts=False)
    root = tab.call("DOM.getDocument")["root"]["nodeId"]
    document = tab.call("DOM.getOuterHTML", nodeId=root)["outerHTML"].partition("<nav>")[2].partition("<script>")[0]
    assert "<th>Network</th>" in document and "Teacher, refined" in document
    assert "<button" not in document and "aria-sort" not in document


BROKEN = base64.b64encode(b"no picture").decode()


@pytest.mark.parametrize(
    ("body", "scripts", "message"),
    [
        ('<div style="width:600px">wide</div>', (), "216 px wider than 400 px because of .*wide"),
        (f'<img alt="a cat" src="data:image/png;base64,{BROKEN}">', (), "pictures that do not load: .*a cat"),
        ('<img alt="a dog" loading="lazy" src="dog.png" style="margin-top:9000px">', (), "a dog"),
        ("<p>x</p>", ("fetch('https://example.org/x').catch(() => {});",), "violates the following Content Security"),
        ("<p>x</p>", ("throw new Error('out of order');",), "out of order"),
        ("<p>x</p>", ("console.error('not well');",), "not well"),
    ],
)
def test_what_is_wrong_is_seen(tab: Tab, tmp_path: Path, body: str, scripts: tuple[str, ...], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_shown(write(tmp_path, body, scripts=scripts), tab=tab)


def test_a_request_is_seen_where_no_policy_forbids_it(tab: Tab, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text("<!doctype html><title>x</title><script>fetch('https://example.org/x').catch(() => {})</script>")
    with pytest.raises(AssertionError, match=r"fetches \['https://example.org/x'\]"):
        assert_shown(target, tab=tab)


def test_a_script_that_does_not_stand_in_the_policy_does_not_run(tab: Tab, tmp_path: Path) -> None:
    tab.open(write(tmp_path, "<script>document.title = 'taken'</script>"), 900)
    assert tab.value("document.title") == "A page" and "Content Security Policy" in tab.errors[0]


def test_a_table_that_sorts_wrongly_is_seen(tab: Tab, tmp_path: Path) -> None:
    tab.open(write(tmp_path, figures()), 900)
    tab.value("Array.prototype.sort = function () { return this; }")
    with pytest.raises(AssertionError, match="Value|Network|Size|Word"):
        assert_tables_sort(tab)


def test_a_page_that_is_not_there_is_not_sound(tab: Tab, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="is no file"):
        assert_shown(tmp_path / "report.html", tab=tab)
