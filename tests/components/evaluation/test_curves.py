from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from components.common.report.palette import BLUE, LINES, ORANGE, VERMILLION
from components.evaluation.curves import line_style, plot_bars, plot_run, read_curves


def colours_of(png: bytes) -> set[str]:
    """The colours of a picture that many of its pixels have exactly."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3)
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    return {f"#{r:02X}{g:02X}{b:02X}" for (r, g, b), count in zip(found, counts, strict=True) if count > 40}


def test_curves_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [{"step": 0, "time": 9.0, "loss": 2.5, "knn_top1": None, "done": True}, {"step": 5, "time": 9.5, "loss": 2}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "lo')
    assert read_curves(tmp_path) == {"loss": ([0, 5], [2.5, 2.0])}
    assert read_curves(tmp_path / "nowhere") == {}


def test_lines_of_a_panel_differ_in_colour_and_marker_and_place() -> None:
    styles = [line_style(index, 200) for index in range(len(LINES))]
    assert [style["color"] for style in styles] == list(LINES)
    assert len({style["marker"] for style in styles}) == len(LINES)
    assert len({style["markevery"] for style in styles[:3]}) == 3
    start, every = line_style(2, 6)["markevery"]
    assert (start, every) == (0, 1), "of few points every one is marked"


def test_a_run_is_drawn_in_the_palette() -> None:
    steps = list(range(20))
    curves = {name: (steps, [place + index for index in steps]) for place, name in enumerate(("loss", "ibot"))}
    png = plot_run({**curves, "knn_top1": (steps, [0.02 * step for step in steps])}, {"raw pixels": 0.2})
    assert png is not None and {BLUE, VERMILLION} <= colours_of(png)
    assert plot_run({}, {}) is None


def test_bars_of_champions_are_hatched() -> None:
    plain = plot_bars([("Student", "student", 50.0), ("Random", "random", 10.0)], "%")
    champion = plot_bars([("Student", "student", 50.0), ("Champion", "champion", 10.0)], "%")
    assert BLUE in colours_of(plain) and ORANGE not in colours_of(plain) and ORANGE in colours_of(champion)
    bars = np.asarray(Image.open(io.BytesIO(champion)).convert("RGB")).astype(int)
    orange = (np.abs(bars - [230, 159, 0]).sum(-1) < 30).any(0).nonzero()[0]
    area = bars[:, orange.min() + 4 : orange.max() - 4]
    rows = (np.abs(area - [230, 159, 0]).sum(-1) < 30).any(1).nonzero()[0]
    inside = area[rows.min() + 2 : rows.max() - 1]
    assert (inside.min(-1) > 200).mean() > 0.02, "white strokes across the orange"
