"""report.html of a curated dataset: one self-contained page for people."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.common.manifest import Manifest
from components.common.report.charts import Part, bars, parts_bar
from components.common.report.html import (
    Cell,
    Markup,
    Row,
    Section,
    code,
    join,
    name,
    number,
    page,
    paragraph,
    plain,
    table,
    text,
)
from components.curation.config import CurationConfig
from components.curation.dataset import CuratedDataset
from components.curation.pool import Pool
from components.curation.report.distributions import sizes, spread
from components.curation.report.facts import Facts, read_facts
from components.curation.report.gallery import Gallery, make_gallery
from components.curation.report.pictured import copies, montage, rejected_files
from components.curation.report.reasons import COPIES, GROUPS, OTHER, Group, group_of
from components.curation.sampling import effective_number
from foundry.images import DecodeLimits
from foundry.progress import duration
from foundry.storage import shown_url, write_atomically

KEPT = "c0"
COLOURS = {group.name: f"c{place}" for place, group in enumerate((*GROUPS, OTHER), start=1)}


def write_report(
    folder: Path, target: Path, *, pool: Pool | None = None, url: str = "", made: Manifest | None = None
) -> None:
    """Write the page of the curated dataset in ``folder`` to ``target``.

    ``pool``, where it can still be read, gives pictures of files that were rejected; ``url`` is what it is called (of a
    local path the last part is shown). ``made`` tells when and how fast. Two calls with the same write the same bytes.
    Raises :class:`UserError` where the dataset is damaged.
    """
    facts = read_facts(CuratedDataset.open(folder))
    decode = {**CurationConfig().decode.model_dump(), **_settings(facts).get("decode", {})}
    limits = DecodeLimits(max_bytes=decode["max_bytes"], max_pixels=decode["max_pixels"])
    write_atomically(target, render(facts, make_gallery(facts, limits, pool), url, made))


def render(facts: Facts, gallery: Gallery, url: str = "", made: Manifest | None = None) -> str:
    """The HTML document."""
    reasons = [reason for _, counts in _grouped(facts) for reason in counts]
    sections = [
        Section("files", "Every file", _files(facts)),
        Section("rejected", "Rejected files", rejected_files(facts, gallery, reasons)),
        Section("copies", "Copies", copies(facts, gallery)),
        Section("concepts", "Concepts", _concepts(facts, gallery)),
        Section("sizes", "Sizes", sizes(facts)),
        Section("origin", "Origin", _origin(facts, url, made)),
    ]
    return page("DINO Foundry: curated dataset", _head(facts), [each for each in sections if each.body])


def _settings(facts: Facts) -> Mapping[str, Any]:
    settings: Mapping[str, Any] = facts.dataset.description.get("curation", {}).get("config", {})
    return settings


def _grouped(facts: Facts) -> list[tuple[Group, dict[str, int]]]:
    """The groups that occur, in the order of the work, with their reasons, the most frequent first."""
    found: dict[str, tuple[Group, dict[str, int]]] = {group.name: (group, {}) for group in (*GROUPS, OTHER)}
    for reason, count in facts.reasons.items():
        found[group_of(reason).name][1][reason] = count
    return [(group, reasons) for group, reasons in found.values() if reasons]


def _share(part: float, whole: float) -> str:
    share = 100 * part / max(whole, 1)
    return "< 0.1 %" if 0 < share < 0.05 else f"{share:.1f} %"


def summary(facts: Facts) -> str:
    """What became of the files, in one paragraph of plain words."""
    told = f"Of {facts.files:,} files in the pool, {facts.kept:,} are kept ({_share(facts.kept, facts.files)})."
    if parts := [f"{sum(reasons.values()):,} {group.sentence}" for group, reasons in _grouped(facts)]:
        told += f" Of the others, {', '.join([*parts[:-1], f'and {parts[-1]}']) if len(parts) > 1 else parts[0]}."
    concepts = facts.concepts
    if concepts is not None and len(concepts.names) > 1:
        drawn = round(float(concepts.after.sum()))
        told += f" The images kept are drawn {drawn:,} times in all." if drawn != facts.kept else ""
        told += (
            f" Spread over {len(concepts.names):,} concepts, they are worth {effective_number(concepts.after):.1f} of "
            f"equal size; as many drawn at random would be worth {concepts.uniform:.1f}."
        )
    return told


def _head(facts: Facts) -> Markup:
    counts = facts.dataset.description["counts"]
    left_out = sum(facts.reasons.get(reason, 0) for reason in COPIES.reasons)
    cards = [
        (f"{facts.kept:,}", f"images kept of {facts.files:,} files ({_share(facts.kept, facts.files)})"),
        (f"{left_out:,}", f"copies left out, of {len(facts.copies.sizes):,} pictures"),
    ]
    if facts.concepts is not None:
        before, after = effective_number(facts.concepts.before), effective_number(facts.concepts.after)
        cards.append((f"{after:.1f}", f"concepts in effect, {before:.1f} before; {len(facts.concepts.names):,} in all"))
    shards = counts.get("shards", 0)
    size = f"of encoded images in {shards:,} shard{'' if shards == 1 else 's'}"
    cards.append((f"{counts.get('bytes', 0) / 1e6:,.1f} MB", size))
    shown = "".join(f'<div class="card"><b>{text(top)}</b><span>{text(low)}</span></div>' for top, low in cards)
    return Markup(
        f'<div class="over">DINO Foundry</div>\n<h1>Curated dataset</h1>\n{paragraph(summary(facts), "lead")}\n'
        f'<div class="cards">{shown}</div>'
    )


def _files(facts: Facts) -> Markup:
    grouped = _grouped(facts)
    parts = [Part("kept", facts.kept, KEPT)]
    parts += [Part(group.name, sum(reasons.values()), COLOURS[group.name]) for group, reasons in grouped]
    largest = max([facts.kept, *facts.reasons.values()])

    def row(title: object, meaning: str, count: int, colour: str, css: str = "") -> Row:
        share = number(_share(count, facts.files))
        return Row(
            [
                Cell(title, "name"),
                bars([count], largest, [colour]),
                number(f"{count:,}"),
                share,
                Cell(meaning, "words"),
            ],
            css,
        )

    rows = [row("kept", "is an image of the dataset", facts.kept, KEPT)]
    for group, reasons in grouped:
        for place, (reason, count) in enumerate(reasons.items()):
            meaning = group.reasons.get(reason, "")
            rows.append(row(code(plain(reason)), meaning, count, COLOURS[group.name], "" if place else "first"))
    rows.append(Row(["all", "", number(f"{facts.files:,}"), number(_share(1, 1)), "files in the pool"], "total"))
    counts = facts.dataset.description["counts"]
    absent = counts.get("absent_files", 0)
    counted = counts.get("files", facts.files - absent) + absent
    gone = f" {absent:,} of these files are no longer in the pool." if absent else ""
    state = paragraph(f"Every file is in exactly one row. Reasons stand in the order of the work.{gone}", "note")
    if counted != facts.files:
        words = f"dataset.json counts {counted:,} files, its two tables hold {facts.files:,}."
        state = Markup(f'<div class="verdict failed"><strong>Not accounted for</strong>{text(words)}</div>')
    head = ["Reason", "", number("Files"), number("Share"), "What it means"]
    return join([parts_bar(parts), state, table(head, rows, "counts")])


def _concepts(facts: Facts, gallery: Gallery) -> Markup:
    concepts = facts.concepts
    if concepts is None:
        return paragraph("This dataset does not tell the clusters of the images that were not drawn.", "note")
    return join([spread(concepts), montage(facts, concepts, gallery)]) if concepts.names else Markup("")


def _origin(facts: Facts, url: str, made: Manifest | None) -> Markup:
    description = facts.dataset.description
    rows: list[Sequence[object]] = [["pool", name(shown_url(url))]] if url else []
    digests = description.get("digests") or {}
    rows += [[f"digest of {what}", code(plain(str(digests[what])))] for what in sorted(digests) if digests[what]]
    rows.append(["schema of the dataset", description.get("schema")])
    if levels := description.get("curation", {}).get("levels"):
        rows.append(["clusters, finest level first", ", ".join(f"{level:,}" for level in levels)])
    if made is not None:
        rows += [[what, name(shown_url(row.url))] for what, row in sorted(made.inputs.items()) if what != "pool"]
        started = datetime.datetime.fromisoformat(made.started).astimezone(datetime.UTC)
        rows.append(["made", f"{started:%Y-%m-%d %H:%M} UTC, in {duration(made.seconds)}"])
        if rate := made.metrics.get("images_per_second"):
            rows.append(["decoding and measuring", f"{rate:,.1f} files a second"])
        rows.append(["fingerprint", code(made.fingerprint)])
        if commit := made.git.get("commit"):
            rows.append(["code", code(commit)])
    return join([table([], rows, "narrow"), _settings_table(_settings(facts))])


def _settings_table(settings: Mapping[str, Any]) -> Markup:
    usual = _flat(CurationConfig().model_dump(mode="json"))
    rows = []
    for key, value in _flat(settings).items():
        changed = key in usual and usual[key] != value
        rows.append([Cell(code(plain(key)), "name"), plain(str(value)), plain(str(usual[key])) if changed else ""])
    listed = table(["Setting", "Value", "Default, where another"], rows, "narrow")
    return Markup(f"<details><summary>Settings</summary>{listed}</details>")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return found
