"""The parts of the page that show pictures: rejected files, groups of copies, concepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from components.common.report.charts import bars
from components.common.report.html import (
    Cell,
    Markup,
    code,
    frame,
    join,
    name,
    number,
    paragraph,
    plain,
    table,
    text,
    thumb,
    thumbs,
)
from components.curation.report.facts import Concepts, Facts
from components.curation.report.gallery import Copied, Gallery

GROUP_EDGES = (2, 3, 4, 5, 9, 17, 1 << 62)
GROUP_TITLES = ("2 files", "3 files", "4 files", "5 to 8 files", "9 to 16 files", "more than 16 files")
NAMED = 4
"""Files of a reason of which no picture is shown."""
SHORT, LONG = 60, 120
"""Characters of names and details under pictures."""


def rejected_files(facts: Facts, gallery: Gallery, reasons: Sequence[str]) -> Markup:
    """Examples of each of ``reasons``: pictures where there are any, else one table of names."""
    tables: list[list[object]] = []
    grids: list[Markup] = []
    for reason in reasons:
        rows = list(gallery.examples.get(reason, ()))
        values = facts.rejected(rows)
        if not any(row in gallery.rejected for row in rows):
            tables += [
                [Cell(code(plain(reason)) if place == 0 else "", "name"), name(each["path"]), name(each["detail"])]
                for place, each in enumerate(values[:NAMED])
            ]
            continue
        title = Markup(f"<h3>{code(plain(reason))} <small>{facts.reasons[reason]:,} files</small></h3>")
        shown = [_example(facts, gallery, row, each) for row, each in zip(rows, values, strict=True)]
        grids.append(join([title, thumbs(shown, "wider")]))
    if not tables and not grids:
        return Markup("")
    note = (
        "Some files of each reason, evenly over the pool; with a blue frame the image that is kept instead. Files that "
        "were not decoded, or are out of reach now, are named only."
    )
    named = [table(["Reason", "File", "Detail"], tables)] if tables else []
    return join([paragraph(note, "note"), *grids, *named])


def _example(facts: Facts, gallery: Gallery, row: int, values: Mapping[str, Any]) -> Markup:
    alternative = f"rejected as {plain(values['reason'])}: {plain(values['path'])}"
    frames = [frame(gallery.rejected.get(row), alternative)]
    kept = facts.sample_row(values["of"]) if values["of"] else None
    if kept is not None and kept in gallery.kept:
        source = plain(facts.samples([kept])[0]["source"])
        frames.append(frame(gallery.kept[kept], f"kept instead: {source}", "kept"))
    return thumb(frames, [name(values["path"], SHORT), name(values["detail"], LONG)])


def copies(facts: Facts, gallery: Gallery) -> Markup:
    """How many pictures are in the pool how often, and some of these groups."""
    sizes = facts.copies.sizes
    if not len(sizes):
        return Markup("")
    counts = np.histogram(sizes, GROUP_EDGES)[0].tolist()
    rows = [
        [title, bars([count], max(counts), ["c3"]), number(f"{count:,}")]
        for title, count in zip(GROUP_TITLES, counts, strict=True)
        if count
    ]
    note = (
        f"{len(sizes):,} pictures are in the pool more than once, in {int(sizes.sum()):,} files. Of each the image "
        "with the most pixels stays; then colour before grey, then most bytes, then the first path. Below are the "
        "largest groups and some of the others; with a blue frame the image that is kept."
    )
    groups = "".join(_group(facts, gallery, group) for group in gallery.copied)
    head = ["Files of one picture", "", number("Pictures")]
    parts = [paragraph(note, "note"), table(head, rows, "narrow counts"), Markup(f'<div class="groups">{groups}</div>')]
    return join(parts)


def _group(facts: Facts, gallery: Gallery, group: Copied) -> Markup:
    figures, why = [], "kept image not in the tables"
    if group.kept is not None:
        values = facts.samples([group.kept])[0]
        why = values["kept_because"]
        shown = frame(gallery.kept.get(group.kept), f"kept: {plain(values['source'])}", "kept")
        figures.append(thumb([shown], [name(values["source"], SHORT), _size(values), "kept"]))
    elif group.undrawn is not None:
        values = facts.rejected([group.undrawn])[0]
        why = "best of its copies not drawn"
        shown = frame(gallery.rejected.get(group.undrawn), f"best of its copies: {plain(values['path'])}")
        figures.append(thumb([shown], [name(values["path"], SHORT), _size(values), "not drawn"]))
    unseen = []
    for row, values in zip(group.copies, facts.rejected(group.copies), strict=True):
        lines = [name(values["path"], SHORT), _size(values), name(values["reason"])]
        if row in gallery.rejected:
            shown = frame(gallery.rejected[row], f"{plain(values['reason'])}: {plain(values['path'])}")
            figures.append(thumb([shown], lines))
        else:
            unseen.append(" ".join(text(line) for line in lines if line))
    rest = group.files - 1 - len(group.copies)
    files = f"{group.files:,} files" + (f", {rest:,} not shown" if rest > 0 else "")
    named = paragraph(Markup("; ".join(unseen)), "note") if unseen else ""
    return Markup(f"<div><h3>{files} <small>{name(why)}</small></h3>{thumbs(figures)}{named}</div>")


def _size(values: Mapping[str, Any]) -> str:
    return f"{values['width']} × {values['height']}" if values["width"] else ""


def montage(facts: Facts, concepts: Concepts, gallery: Gallery) -> Markup:
    """A row of images of each concept that is shown."""
    note = "The largest concepts, some of middle size and the smallest: images before → after, and some that are kept."
    blocks = [Markup("<h3>What concepts show</h3>"), paragraph(note, "note")]
    for place, rows in gallery.concepts.items():
        title = concepts.names[place]
        figures = [
            thumb([frame(gallery.kept.get(row), f"concept {plain(title)}: {plain(values['source'])}")])
            for row, values in zip(rows, facts.samples(rows), strict=True)
        ]
        counts = f"{concepts.before[place]:,} → {concepts.after[place]:,.0f}"
        label = f'<div class="label"><b>{name(title)}</b><span>{text(counts)}</span></div>'
        blocks.append(Markup(f'<div class="row">{label}{thumbs(figures)}</div>'))
    return join(blocks)
