"""The parts of the page that show how images are spread, before and after: over concepts, sizes and shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from components.common.report.charts import bars, steps
from components.common.report.html import Markup, join, number, paragraph, plain, table
from components.curation.report.facts import Concepts, Facts
from components.curation.sampling import effective_number

CURVE_POINTS = 400
"""Concepts drawn at most; of more, every n-th."""
BEFORE, AFTER = "before", "after"
"""CSS classes of the colours of the two states."""
SHAPE_EDGES = (0, 1 / 4, 1 / 2, 2 / 3, 0.95, 1 / 0.95, 3 / 2, 2, 4, np.inf)
"""Of width over height."""
SHAPES = (
    *("taller than 1 : 4", "1 : 4 to 1 : 2", "1 : 2 to 2 : 3", "2 : 3 to 1 : 1", "square, within 5 %"),
    *("1 : 1 to 3 : 2", "3 : 2 to 2 : 1", "2 : 1 to 4 : 1", "wider than 4 : 1"),
)


def spread(concepts: Concepts) -> Markup:
    """Images over concepts: entropies, and every concept's images in a curve."""
    note = (
        "A concept is one of the finest clusters. Before: the unique images. After: the images drawn, each as often as "
        "the training sampler takes it. The effective number is exp(entropy): how many concepts of equal size the "
        "images are worth. A uniform sample takes as many images as were drawn, at random, without regard to concepts."
    )
    drawn, uniform = f"{concepts.after.sum():,.0f}", concepts.uniform
    middle = [drawn, "", f"{np.log(uniform):.3f}", f"{uniform:.1f}", "", ""]
    rows = [
        ["Before", *map(number, _figures(concepts.before))],
        ["Uniform sample", *map(number, middle)],
        ["After", *map(number, _figures(concepts.after))],
    ]
    head = [
        "Which images",
        *map(number, ("Images", "Concepts", "Entropy (nats)", "Effective number", "Largest", "Smallest")),
    ]
    count = len(concepts.names)
    places = np.linspace(0, count - 1, min(count, CURVE_POINTS)).round().astype(int)
    words = (
        f"Images of each of {count:,} concepts, largest first: from {concepts.before.max():,} to "
        f"{concepts.before.min():,} before, from {concepts.after.max():,.0f} to {concepts.after.min():,.0f} after."
    )
    series = [concepts.before[places].tolist(), concepts.after[places].tolist()]
    curve = steps(series, [BEFORE, AFTER], words, f"{count:,} concepts, in the order of their images before")
    return join([paragraph(note, "note"), table(head, rows), legend(), curve])


def _figures(sizes: np.ndarray) -> list[str]:
    effective = effective_number(sizes)
    return [
        *(f"{sizes.sum():,.0f}", f"{np.count_nonzero(sizes):,}", f"{np.log(effective):.3f}", f"{effective:.1f}"),
        *(f"{sizes.max():,.0f}", f"{sizes.min():,.0f}"),
    ]


def legend() -> Markup:
    """Which colour is which state."""
    chips = "".join(f'<span><i class="{state}"></i>{state}</span>' for state in (BEFORE, AFTER))
    return Markup(f'<div class="legend">{chips}</div>')


def sizes(facts: Facts) -> Markup:
    """Pixels and shapes of images."""
    before, after = facts.sizes_before, facts.sizes_after
    states = [(BEFORE, before), (AFTER, after)] if before is not None else [(AFTER, after)]
    note = (
        "Before: every file that was decoded. After: every image that is kept. Side: the square root of width × height."
        if before is not None
        else "Of the images that are kept; this dataset does not tell the sizes of the other files."
    )
    quantiles = []
    for state, values in states:
        if len(values):
            sides = [f"{side:,.0f}" for side in np.quantile(_side(values), [0, 0.05, 0.5, 0.95, 1])]
            quantiles.append([state.capitalize(), *map(number, (f"{len(values):,}", *sides))])
    head = ["Side in pixels", *map(number, ("Images", "Smallest", "5 %", "Median", "95 %", "Largest"))]
    edges, titles = _side_bins(_side(states[0][1]))
    by_side = _histogram("Side in pixels", [(state, _side(values)) for state, values in states], edges, titles)
    shapes = [(state, values[:, 0] / values[:, 1]) for state, values in states]
    by_shape = _histogram("Width : height", shapes, SHAPE_EDGES, SHAPES)
    counted = facts.dataset.samples["ext"].value_counts().to_pylist()
    kinds = sorted(counted, key=lambda row: (-row["counts"], row["values"]))
    formats = ", ".join(f"{row['counts']:,} {plain(row['values'])}" for row in kinds)
    return join(
        [
            paragraph(note, "note"),
            table(head, quantiles),
            legend(),
            Markup(f'<div class="side">{by_side}{by_shape}</div>'),
            paragraph(f"Kept by format: {formats}.", "note"),
        ]
    )


def _side(values: np.ndarray) -> np.ndarray:
    return np.sqrt(values.prod(axis=1).astype(np.float64))


def _side_bins(sides: np.ndarray) -> tuple[list[float], list[str]]:
    """Edges a factor of two apart around all ``sides``, and the names of the bins between them."""
    if not len(sides):
        return [1.0, 2.0], ["1"]
    powers = range(int(np.log2(sides.min())), int(np.log2(sides.max())) + 2)
    edges = [2**power for power in powers]
    names = [f"{low:,} to {high - 1:,}" if low > 1 else "1" for low, high in zip(edges, edges[1:], strict=False)]
    return [float(edge) for edge in edges], names


def _histogram(
    title: str, states: Sequence[tuple[str, np.ndarray]], edges: Sequence[float], names: Sequence[str]
) -> Markup:
    counts = np.stack([np.histogram(values, edges)[0] for _, values in states], axis=1)
    colours = [state for state, _ in states]
    rows = [
        [name, bars(each.tolist(), int(counts.max()), colours), *(number(f"{value:,}") for value in each)]
        for name, each in zip(names, counts, strict=True)
        if each.any()
    ]
    return table([title, "", *(number(state.capitalize()) for state in colours)], rows, "counts")
