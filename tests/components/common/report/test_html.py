from __future__ import annotations

import re
from pathlib import Path

import components
from components.common.report.charts import Part, bars, parts_bar, steps
from components.common.report.html import (
    Markup,
    Picture,
    Section,
    figure,
    frame,
    name,
    number,
    page,
    plain,
    table,
    text,
)
from tests.components.pages import assert_self_contained, read_page


def test_names_are_escaped_short_and_without_credentials() -> None:
    assert name("<b>\"a'&.png") == "<bdi>&lt;b&gt;&quot;a&#x27;&amp;.png</bdi>"
    assert plain("a\nb\u202ec\ud800\x00é 日本") == "a\\nb\\u202ec\\ud800\\x00é 日本"
    assert plain("https://me:secret@host/a.jpg?token=secret") == "https://host/a.jpg"
    assert plain("x" * 50 + "y" * 50, 21) == "x" * 10 + "…" + "y" * 10
    assert text(name("<")) == "<bdi>&lt;</bdi>", "markup is not escaped twice"


def test_a_frame_without_a_picture_says_so() -> None:
    assert "no picture" in frame(None, "a cat")
    shown = frame(Picture("data:image/webp;base64,AA", 3, 4), 'a "cat"', "kept")
    assert 'alt="a &quot;cat&quot;" width="3" height="4"' in shown and 'class="frame kept"' in shown


def test_bars_are_as_long_as_their_values() -> None:
    assert re.findall(r"width:([\d.]+)%", str(bars([5, 0, 20], 20, ["c0", "c1", "c2"]).content)) == [
        "25.00",
        "0.00",
        "100.00",
    ]
    bar = parts_bar([Part("a", 30, "c0"), Part("none", 0, "c1"), Part("b<", 90, "c2")])
    assert re.findall(r"width:([\d.]+)%", bar) == ["25.000", "75.000"]
    assert "b&lt; 90" in bar and "none" not in bar


def test_steps_go_through_their_values() -> None:
    chart = steps([[4, 2, 1], [1, 1, 0]], ["before", "after"], 'from "4" to 1', "three")
    assert 'd="M0 100V0.00H1V50.00H2V75.00H3V100Z"' in chart and 'd="M0 100V75.00H1V75.00H2V100.00H3V100Z"' in chart
    assert 'aria-label="from &quot;4&quot; to 1"' in chart and 'viewBox="0 0 3 100"' in chart
    assert steps([[0.0]], ["after"], "nothing", "one").count("V100.00") == 1


def test_a_sortable_table_brings_its_script_once_and_no_other_page_has_one(tmp_path: Path) -> None:
    plain_table = table(["Name", number("Value")], [["a", number("1.5 M", sort=1.5e6)]])
    assert '<td class="n" data-sort="1500000.0">1.5 M</td>' in plain_table and "sortable" not in plain_table
    sortable = table(["Name"], [["a"]], "narrow", sortable=True)
    assert '<table class="sortable narrow">' in sortable
    for bodies, scripts in (([plain_table], 0), ([sortable, sortable], 1)):
        sections = [Section(f"s{place}", "Section", body) for place, body in enumerate(bodies)]
        html = page("title", Markup("<h1>title</h1>"), sections)
        (tmp_path / "report.html").write_text(html)
        parsed, words = read_page(tmp_path)
        assert len(parsed.scripts) == scripts and "querySelector" not in words
        assert_self_contained(parsed, html)


def test_scripts_of_sections_stand_in_the_page_once_and_in_its_policy(tmp_path: Path) -> None:
    script = 'document.title = "ran";'
    sections = [Section(name, name, Markup("<p>x</p>"), scripts=(script,)) for name in ("one", "two")]
    html = page("title", Markup(""), sections)
    (tmp_path / "report.html").write_text(html)
    parsed, _ = read_page(tmp_path)
    assert parsed.scripts == [script]
    assert_self_contained(parsed, html)


def test_scripts_of_the_page_hold_nothing_that_would_end_them() -> None:
    for path in Path(components.__file__).parent.rglob("*.js"):
        assert "</" not in path.read_text(encoding="utf-8") and "<!--" not in path.read_text(encoding="utf-8"), path


def test_a_figure_scrolls_where_it_is_told_to() -> None:
    assert '<div class="wide"><img' in figure(b"png", "sheet", scrolls=True) and "wide" not in figure(b"png", "chart")
