"""Charts of HTML and SVG alone: they follow the page's colours, light or dark, and its width. Every figure that they
draw stands in a table beside them or in their alternative text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from components.common.report.html import Cell, Markup, text


@dataclass(frozen=True)
class Part:
    """A part of a whole: ``css`` names its colour (``c0`` .. ``c7``)."""

    name: str
    value: float
    css: str


def parts_bar(parts: Sequence[Part]) -> Markup:
    """One bar divided among ``parts``, with a legend that tells their values."""
    total = sum(part.value for part in parts) or 1.0
    shown = [part for part in parts if part.value]
    pieces = "".join(f'<i class="{part.css}" style="width:{100 * part.value / total:.3f}%"></i>' for part in shown)
    legend = "".join(f'<span><i class="{part.css}"></i>{text(part.name)} {part.value:,.0f}</span>' for part in shown)
    return Markup(f'<div class="stack" aria-hidden="true">{pieces}</div><div class="legend">{legend}</div>')


def bars(values: Sequence[float], largest: float, css: Sequence[str]) -> Cell:
    """A table cell of horizontal bars, one below the other, ``largest`` being the whole width."""
    whole = max(largest, 1e-12)
    lines = "".join(
        f'<i class="{colour}" style="width:{100 * value / whole:.2f}%"></i>'
        for value, colour in zip(values, css, strict=True)
    )
    return Cell(Markup(f'<div class="bars" aria-hidden="true">{lines}</div>'), "chart")


def steps(series: Sequence[Sequence[float]], css: Sequence[str], alternative: str, horizontal: str) -> Markup:
    """Filled step curves over one another, all of the same length; ``horizontal`` names the axis.

    ``alternative`` says in words what they show.
    """
    count = max(map(len, series))
    top = max((max(values, default=0.0) for values in series), default=0.0) or 1.0
    paths = "".join(
        f'<path class="{colour}" d="{_outline(values, top)}"/>' for values, colour in zip(series, css, strict=True)
    )
    return Markup(
        f'<div class="plot"><div class="up"><span>{top:,.0f}</span><span>{top / 2:,.0f}</span><span>0</span></div>'
        f'<svg role="img" aria-label="{escape(alternative)}" viewBox="0 0 {count} 100" preserveAspectRatio="none">'
        f'<path class="grid" d="M0 0H{count}M0 50H{count}"/>{paths}</svg>'
        f'<div class="along">{text(horizontal)}</div></div>'
    )


def _outline(values: Sequence[float], top: float) -> str:
    heights = [f"V{100 - 100 * value / top:.2f}H{place}" for place, value in enumerate(values, start=1)]
    return "M0 100" + "".join(heights) + "V100Z"
