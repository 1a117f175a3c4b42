"""Curves of the training runs and the bar chart of the report, as PNG bytes."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.common.report.palette import BLUE, GREEN, GREYS, LINES, MARKERS, ORANGE

Curve = tuple[list[int], list[float]]
"""Steps and values."""

_MARKED = 8
"""Markers on a line of many points, about."""
_LOSSES = ("loss", "dino_global", "dino_local", "ibot", "match_images", "match_patches", "koleo", "gram")
_HEALTH = ("target_entropy", "prototype_use")
_OWNERS = {
    "knn_top1": "teacher",
    "segmentation_miou": "teacher",
    "patch_coherence": "teacher",
    "feature_rank": "student",
}
"""Of a panel with one curve: whose it is, where no student's name stands in front."""


def read_curves(run: Path) -> dict[str, Curve]:
    """Every numeric series of ``metrics.jsonl`` of a run folder by name; empty where there is no such file.

    A half-written last line and values that were not finite (null) are left out.
    """
    path = run / "metrics.jsonl"
    curves: dict[str, Curve] = {}
    if not path.is_file():
        return curves
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            step = int(row["step"])
        except (ValueError, KeyError, TypeError):
            continue
        for name, value in row.items():
            if name not in ("step", "time") and isinstance(value, (int, float)) and not isinstance(value, bool):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(step)
                values.append(float(value))
    return curves


def plot_run(curves: Mapping[str, Curve], baselines: Mapping[str, float]) -> bytes | None:
    """Panels two abreast: losses (of each student), k-NN (``baselines`` as grey lines), dense quality, feature rank,
    health.

    None where there are no curves. A name with slashes belongs to the student before the last one: ``vit/ibot``.
    """
    students = list(dict.fromkeys(_student(name) for name in curves if name.split("/")[-1] in _LOSSES))
    panels: list[tuple[str, dict[str, Curve], Mapping[str, float]]] = []
    for student in students:
        own = {name: curve for name, curve in curves.items() if _student(name) == student}
        panels.append((f"Losses {student}".strip(), _named(own, _LOSSES), {}))
    panels += [
        ("k-NN top-1 (%)", _named(curves, ("knn_top1",)), baselines),
        ("Segmentation mIoU (%)", _named(curves, ("segmentation_miou",)), {}),
        ("Patch coherence", _named(curves, ("patch_coherence",)), {}),
        ("Feature rank", _named(curves, ("feature_rank",)), {}),
        ("Target entropy, prototype use", _named(curves, _HEALTH), {}),
    ]
    shown = [panel for panel in panels if panel[1]]
    if not shown:
        return None
    rows = (len(shown) + 1) // 2
    figure = new_figure(8.6, 2.55 * rows)
    for number, (title, series, lines) in enumerate(shown, start=1):
        axes = figure.add_subplot(rows, 2, number)
        factor = 100.0 if title.endswith("(%)") else 1.0
        for index, (name, (steps, values)) in enumerate(series.items()):
            label = _label(name) if not title.startswith("Losses") else name.split("/")[-1].replace("_", " ")
            axes.plot(
                steps,
                [factor * value for value in values],
                label=label,
                **line_style(index, len(steps)),
            )
        for style, (name, value) in zip((":", "--", "-."), lines.items(), strict=False):
            axes.axhline(factor * value, color=GREYS[1], linestyle=style, linewidth=1.1, label=name)
        dress(axes, title, "step")
        if len(series) + len(lines) > 1:
            axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return png_of(figure)


def line_style(index: int, points: int) -> dict[str, Any]:
    """How matplotlib draws line ``index`` of a panel, of ``points`` points: a colour and markers of its own.

    Of many points some carry the marker, at other places than those of the lines beside it.
    """
    every = max(1, points // _MARKED)
    return {
        "color": LINES[index % len(LINES)],
        "linewidth": 1.6,
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 4,
        "markevery": (index * every // 3 % every if points > _MARKED else 0, every),
    }


def plot_gram_choice(choice: Mapping[str, Any]) -> bytes:
    """The curve that the Gram teacher was chosen by (``gram_teacher.json`` with a curve): peak, bound, decay."""
    decay, factor = choice["decay"], 100.0 if choice["measure"] == "segmentation_miou" else 1.0
    figure = new_figure(8.6, 2.55)
    axes = figure.add_subplot(1, 1, 1)
    axes.plot(choice["steps"], [factor * value for value in choice["values"]], color=BLUE, marker="o", ms=3)
    axes.axhline(factor * decay["bound"], color=GREYS[1], linestyle="--", linewidth=1.1, label="decayed below")
    axes.axvline(decay["peak_step"], color=GREEN, linewidth=1.4, label="Gram teacher (peak)")
    axes.axvline(decay["established"], color=ORANGE, linestyle=":", linewidth=1.8, label="decay established")
    title = "Segmentation mIoU (%)" if choice["measure"] == "segmentation_miou" else "Patch coherence"
    dress(axes, f"{title} along the pretraining", "step")
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return png_of(figure)


def _student(name: str) -> str:
    return "/".join(name.split("/")[:-1])


def _named(curves: Mapping[str, Curve], names: Sequence[str]) -> dict[str, Curve]:
    """The curves whose last part is one of ``names``: student by student, in the order of ``names``."""
    chosen = [name for name in curves if name.split("/")[-1] in names]
    chosen.sort(key=lambda name: (_student(name), names.index(name.split("/")[-1])))
    return {name: curves[name] for name in chosen}


def _label(name: str) -> str:
    *student, last = name.split("/")
    if last in _OWNERS:
        return "/".join(student) or _OWNERS[last]
    return " ".join([*student, last.replace("_", " ")])


def plot_bars(rows: Sequence[tuple[str, str, float]], unit: str) -> bytes:
    """Horizontal bars of (title, kind, value): trained networks blue, champions orange and hatched, the rest grey."""
    colours = {"teacher": BLUE, "student": BLUE, "champion": ORANGE}
    figure = new_figure(8.2, 0.34 * len(rows) + 0.7)
    axes = figure.add_subplot(1, 1, 1)
    positions = list(range(len(rows)))[::-1]
    axes.barh(
        positions,
        [row[2] for row in rows],
        color=[colours.get(row[1], GREYS[2]) for row in rows],
        hatch=["//" if row[1] == "champion" else "" for row in rows],
        edgecolor="white",
        linewidth=0,
        height=0.68,
    )
    for position, (_, _, value) in zip(positions, rows, strict=True):
        axes.text(value, position, f" {value:.1f}", va="center", fontsize=8, color="#111827")
    axes.set_yticks(positions, [row[0] for row in rows], fontsize=8)
    axes.set_xlim(0, max(max(row[2] for row in rows) * 1.12, 1e-6))
    dress(axes, "", unit)
    axes.grid(False, axis="y")
    return png_of(figure)


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of so many inches, laid out by constraints."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def dress(axes: Any, title: str, xlabel: str) -> None:
    """The look of all charts: a small title at the left, a light grid, no frame above and at the right."""
    axes.set_title(title, fontsize=9.5, loc="left", color="#111827")
    axes.set_xlabel(xlabel, fontsize=8, color=GREYS[0])
    axes.tick_params(labelsize=8, colors=GREYS[0])
    axes.grid(True, color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREYS[2])


def png_of(figure: Any) -> bytes:
    """PNG of a matplotlib figure, the same bytes each time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
