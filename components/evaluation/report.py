"""report.html: everything a release owner wants to see before moving an alias, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.common.report.html import (
    Cell,
    Markup,
    Row,
    Section,
    code,
    figure,
    join,
    number,
    page,
    paragraph,
    table,
    text,
)
from components.common.report.palette import CLASSES
from components.evaluation.attention import ATTENTION_NOTE, SIMILARITY_SCRIPT
from components.evaluation.concerns import Concern, concerns_section
from components.evaluation.costs import Cost, EnergyRule, costs_section
from components.evaluation.curated import CuratedFacts
from components.evaluation.gates import HISTOGRAM, RAW_PIXELS, Gate, Judgement, Verdict, headline_measure, show
from components.evaluation.measure import MEASURES, Examination
from components.evaluation.speed import BATCH, Speed
from components.evaluation.subjects import Subject
from foundry.progress import duration

SIGNS = {">": ">", ">=": "≥", "<=": "≤"}
"""Comparisons of gates as the page shows them."""
DATASET_PAGE = "curation.html"
"""The dataset's own page, beside the report."""


@dataclass(frozen=True)
class RunSummary:
    """A training run as the report shows it."""

    title: str
    recipe: Mapping[str, Any]
    """recipe.yaml; empty where the run has none."""
    curves: bytes | None
    """PNG."""
    gram_teacher: str = ""
    """Of a refinement: which state of the pretraining it is anchored to, in words."""
    gram_choice: bytes | None = None
    """PNG of the curve that this was chosen by."""
    dense_against_global: bytes | None = None
    """PNG of dense against global quality along the run."""


@dataclass(frozen=True)
class Pictures:
    """PNGs of the report; None or empty where there is nothing to show."""

    bars: bytes
    pca: bytes
    segmentation: bytes | None
    mask_classes: Sequence[tuple[int, str]]
    """(index, name) of the classes in the segmentation picture."""
    neighbours: Mapping[str, bytes]
    """Title of the network -> sheet."""
    neighbour_note: str
    clusters: bytes | None
    attention: bytes | None
    explorers: Markup
    """Pictures whose patches can be clicked."""
    depth: bytes | None
    tracking: Mapping[str, bytes]
    """Video -> strip."""


@dataclass(frozen=True)
class Content:
    """What :func:`render` turns into a page."""

    verdict: Verdict
    subjects: Sequence[Subject]
    networks: Mapping[str, Mapping[str, Any]]
    """Subject -> architecture, parameters, input_side, sha256."""
    speeds: Mapping[str, Speed]
    """Trained subject -> size and speed."""
    device: str
    """What these were measured on."""
    found: Mapping[str, Examination]
    """Subject, ``raw pixels`` or ``colour histogram`` -> what was measured."""
    runs: Sequence[RunSummary]
    pictures: Pictures
    facts: CuratedFacts
    sets: Sequence[Mapping[str, Any]]
    """Of each labelled set its name, url, digest and counts."""
    lineage: Sequence[tuple[str, Mapping[str, Any]]]
    """Input -> step, fingerprint, digest, git commit ..."""
    neighbours: int
    """k of the k-NN."""
    costs: Sequence[Cost]
    rule: EnergyRule
    concerns: Sequence[Concern]


def render(content: Content) -> str:
    """The HTML document."""
    sections = [
        Section("results", "Results", _results(content)),
        Section("concerns", "What to worry about", concerns_section(content.concerns)),
        Section("gates", "Gates", _gates(content)),
        Section("cost", "What it cost", costs_section(content.costs, content.rule)),
        Section("speed", "Size and speed", _speed(content)),
        Section("training", "Training", _training(content)),
        Section("features", "Patch features", _features(content), scripts=_scripts(content)),
        Section("dense", "Dense tasks", _dense(content)),
        Section("neighbours", "Nearest neighbours", _neighbours(content)),
        Section("classes", "Classes", _classes(content)),
        Section("dataset", "Dataset", dataset_section(content.facts, content.pictures.clusters)),
        Section("lineage", "Lineage", _lineage(content)),
        Section("protocols", "How this was measured", _protocols(content)),
    ]
    return page("DINO Foundry: evaluation report", _head(content), [each for each in sections if each.body])


def _head(content: Content) -> Markup:
    verdict = content.verdict
    state = "passed" if verdict.passed else "failed"
    title = "Passed" if verdict.passed else "Not passed"
    cards = _cards(content)
    return Markup(
        '<div class="over">DINO Foundry</div>\n<h1>Evaluation report</h1>\n'
        f"{paragraph(_protocol_line(content), 'note')}\n"
        f'<div class="verdict {state}"><strong>{title}</strong>{text(verdict.summary)}</div>\n'
        f'<div class="cards">{cards}</div>'
    )


def _protocol_line(content: Content) -> str:
    used = {
        "classification": "Labelled protocols were used for the gates; label-free measures are shown beside them.",
        "segmentation": "Masks were given, but no class labels: segmentation and label-free measures gate.",
        "label-free": "No labels were given: only label-free protocols were used.",
    }
    return used[content.verdict.protocol]


def _cards(content: Content) -> Markup:
    facts = content.facts
    parts = [(f"{facts.kept:,}", f"images learned from, {facts.found:,} files in the pool")]
    measure = headline_measure(content.verdict.protocol)
    for subject in content.subjects:
        if subject.kind == "student" or subject.name in ("refined", "teacher"):
            value = content.found[subject.name].measures[measure]
            random = content.found[subject.random].measures[measure]
            parts.append(
                (
                    show(measure, value),
                    f"{subject.title}: {MEASURES[measure].sentence}; untrained {show(measure, random)}",
                )
            )
    for each in content.sets:
        if "test" in each:
            parts.append((f"{each['test']:,}", f"labelled test images of {each['name']}, {each['train']:,} train"))
    return Markup("".join(f'<div class="card"><b>{text(top)}</b><span>{text(low)}</span></div>' for top, low in parts))


def _columns(content: Content) -> list[str]:
    there = {name for each in content.found.values() for name in each.measures}
    order = list(MEASURES)
    return sorted(there, key=lambda name: (order.index(name.rpartition("/")[2]), name))


def _results(content: Content) -> Markup:
    columns = _columns(content)
    compared = [subject.name for subject in content.subjects if subject.kind != "random"]
    best = {}
    for column in columns:
        values = [content.found[name].measures[column] for name in compared if column in content.found[name].measures]
        best[column] = (min if MEASURES[column].smaller_is_better else max)(values, default=None)
    head: list[object] = ["Network", "Architecture", number("Parameters"), number("Input")]
    head += [number(MEASURES[column].title) for column in columns]
    rows = []
    previous = None
    for subject in content.subjects:
        network = content.networks[subject.name]
        group = subject.name.split("-")[1] if subject.name.startswith("student-") else subject.kind == "peer"
        cells: list[object] = [
            subject.title,
            network["architecture"],
            number(f"{network['parameters'] / 1e6:.2f} M", sort=network["parameters"]),
            number(f"{network['input_side']} px", sort=network["input_side"]),
        ]
        for column in columns:
            value = content.found[subject.name].measures.get(column)
            top = value is not None and value == best[column] and subject.kind != "random"
            cells.append(_value(column, value, "best" if top else ""))
        first = "first" if group != previous and previous is not None else ""
        rows.append(Row(cells, f"{subject.kind} {first}".strip()))
        previous = group
    for position, name in enumerate((RAW_PIXELS, HISTOGRAM)):
        cells = [name.capitalize(), "no network", number("–"), number("–")]
        cells += [_value(column, content.found[name].measures.get(column)) for column in columns]
        rows.append(Row(cells, "baseline first" if position == 0 else "baseline"))
    measure = headline_measure(content.verdict.protocol)
    caption = f"{MEASURES[measure].title} of every row. Grey: random weights and features without a network."
    note = (
        "Every trained network stands beside the same network with random weights, the export of its own run before "
        "the first step. Accuracies, recalls and mIoU in per cent; the best trained network of a column in bold."
    )
    chart = figure(content.pictures.bars, "bar chart", caption, 860)
    return join([paragraph(note, "note"), table(head, rows, sortable=True), chart])


def _value(measure: str, value: float | None, css: str = "") -> Cell:
    if value is None:
        return number("–")
    scaled = 100 * value if MEASURES[measure].share else value
    return number(f"{scaled:.{3 if MEASURES[measure].smaller_is_better else 1}f}", css)


def _speed(content: Content) -> Markup:
    head = ["Network", number("Input"), number("Weights"), number("GFLOP an image"), number("Images a second")]
    rows = []
    for subject in content.subjects:
        speed = content.speeds.get(subject.name)
        if speed is not None:
            side = content.networks[subject.name]["input_side"]
            rows.append(
                [
                    subject.title,
                    number(f"{side} px"),
                    number(f"{speed.megabytes:.1f} MB"),
                    number(f"{speed.gflop:.3g}"),
                    number(f"{speed.images_per_second:,.0f}"),
                ]
            )
    note = (
        f"Float32, {BATCH} images at a time, without decoding and preprocessing; measured on: {content.device}. A "
        "multiplication and an addition are two operations."
    )
    return join([paragraph(note, "note"), table(head, rows, sortable=True)])


def _gates(content: Content) -> Markup:
    parts = []
    titles = {
        subject.student or subject.name: subject.title for subject in content.subjects if subject.kind != "random"
    }
    judged: list[tuple[str, Judgement]] = [*content.verdict.teachers.items(), *content.verdict.students.items()]
    for name, judgement in judged:
        rows = []
        for gate in judgement.gates:
            state = (
                Markup('<span class="ok">passed</span>') if gate.passed else Markup('<span class="no">failed</span>')
            )
            rows.append(
                [
                    Cell(code(gate.name), "name"),
                    number(f"{gate.measured:.4g}"),
                    number(f"{SIGNS[gate.comparison]} {gate.bound:.4g}"),
                    state,
                    Cell(_sentence(gate), "words"),
                ]
            )
        word = "passed" if judgement.passed else "not passed"
        parts.append(Markup(f"<h3>{text(titles.get(name, name))}: {word}</h3>"))
        parts.append(table(["Gate", number("Measured"), number("Bound"), "Result", "In words"], rows))
    return join(parts)


def _sentence(gate: Gate) -> str:
    told = gate.explanation
    return f"{told[0].upper()}{told[1:]}." if gate.name == "teacher_learned" else f"The {told}."


def _training(content: Content) -> Markup:
    parts = []
    for run in content.runs:
        parts.append(Markup(f"<h3>{text(run.title)}</h3>"))
        parts.append(paragraph(_recipe_line(run.recipe), "note"))
        if run.curves is None:
            parts.append(paragraph("This run left no metrics.jsonl.", "note"))
        else:
            parts.append(figure(run.curves, f"curves of {run.title}"))
        if run.dense_against_global is not None:
            parts.append(figure(run.dense_against_global, f"dense against global quality of {run.title}"))
        if run.gram_teacher:
            parts.append(paragraph(run.gram_teacher, "note"))
        if run.gram_choice is not None:
            parts.append(figure(run.gram_choice, "dense quality along the pretraining"))
    return join(parts)


def _recipe_line(recipe: Mapping[str, Any]) -> str:
    if not recipe:
        return "No recipe.yaml."
    shown = [f"recipe {recipe.get('name')}", f"{recipe.get('steps')} steps of {recipe.get('batch')} images"]
    crops = recipe.get("crops") or {}
    if crops:
        local = (
            f", {crops.get('local_count')} local of {crops.get('local_size')} px" if crops.get("local_count") else ""
        )
        shown.append(f"2 global crops of {crops.get('global_size')} px{local}")
    losses = [_weight(name, value) for name, value in (recipe.get("losses") or {}).items() if name != "koleo_group"]
    if any(losses):
        shown.append("losses " + ", ".join(filter(None, losses)))
    shown.append(f"seed {recipe.get('seed')}")
    return "; ".join(shown) + "."


def _weight(name: str, value: Any) -> str:
    """A loss's weight in words: a number, the ends of a schedule, a switch; empty where the loss is off."""
    if isinstance(value, Mapping):
        ends = [value.get("start"), value.get("peak"), value.get("end")]
        return f"{name} " + " to ".join(f"{end:g}" for end in ends if end is not None)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{name} {value:g}" if value else ""
    return name if value is True else ""


def _features(content: Content) -> Markup:
    pictures = content.pictures
    note = (
        "The first three principal components of each network's patch features as red, green and blue, one PCA for all "
        "images of a column: equal colours mean similar patches. Networks see the images at twice their usual side."
    )
    parts = [paragraph(note, "note"), figure(pictures.pca, "PCA of patch features", scrolls=True)]
    if pictures.attention is not None:
        parts += [Markup("<h3>Attention</h3>"), paragraph(ATTENTION_NOTE, "note")]
        parts.append(figure(pictures.attention, "attention of the last block", scrolls=True))
    if pictures.explorers:
        parts += [Markup("<h3>Similar patches</h3>"), pictures.explorers]
    return join(parts)


def _scripts(content: Content) -> tuple[str, ...]:
    return (SIMILARITY_SCRIPT,) if content.pictures.explorers else ()


def _dense(content: Content) -> Markup:
    pictures = content.pictures
    parts: list[Markup] = []
    if pictures.segmentation is not None:
        chips = "".join(
            f'<span><i style="background:rgb({r},{g},{b})"></i>{text(name)}</span>'
            for index, name in pictures.mask_classes
            for r, g, b in [CLASSES[index % len(CLASSES)]]
        )
        parts += [
            Markup("<h3>Segmentation by a linear head</h3>"),
            paragraph(
                "Test images, their masks (white: not scored) and what a linear head reads from frozen patches.", "note"
            ),
            Markup(f'<div class="legend">{chips}</div>'),
            figure(pictures.segmentation, "segmentations", scrolls=True),
        ]
    if pictures.depth is not None:
        note = "Test images, their true depth, and what a linear head reads from frozen patches."
        parts += [Markup("<h3>Depth by a linear head</h3>"), paragraph(note, "note")]
        parts.append(figure(pictures.depth, "depths", scrolls=True))
    for name, strip in pictures.tracking.items():
        parts.append(Markup(f"<h3>Tracking: {text(name)}</h3>"))
        parts.append(figure(strip, f"tracked objects of {name}", scrolls=True))
    return join(parts)


def _neighbours(content: Content) -> Markup:
    blocks = "".join(
        f"<div><h3>{text(title)}</h3>{figure(png, f'nearest neighbours by {title}')}</div>"
        for title, png in content.pictures.neighbours.items()
    )
    return join([paragraph(content.pictures.neighbour_note, "note"), Markup(f'<div class="side">{blocks}</div>')])


def _classes(content: Content) -> Markup:
    columns: list[tuple[str, Mapping[str, float]]] = [
        (subject.title, content.found[subject.name].per_class) for subject in content.subjects
    ]
    columns += [(name.capitalize(), content.found[name].per_class) for name in (RAW_PIXELS, HISTOGRAM)]
    names = list(columns[0][1])
    if not names:
        return Markup("")
    rows = [
        [name, *(_heat(values.get(name, 0.0)) for _, values in columns)]
        for name in sorted(names, key=lambda name: -max(values.get(name, 0.0) for _, values in columns))[:60]
    ]
    note = f"Share of each class's test images that {content.neighbours}-NN classifies rightly, in per cent."
    if len(names) > 60:
        note += f" The 60 best of {len(names)} classes."
    head = ["Class", *(Cell(title, style="text-align:center") for title, _ in columns)]
    return join([paragraph(note, "note"), table(head, rows, sortable=True)])


def _heat(value: float) -> Cell:
    shade = f"background:rgba(37,99,235,{0.62 * value:.2f})"
    return Cell(f"{100 * value:.0f}", "heat", shade)


def dataset_section(facts: CuratedFacts, clusters: bytes | None) -> Markup:
    """What the networks learned from; ``clusters`` is a PNG."""
    rows = [["Files in the pool", number(f"{facts.found:,}")], ["Kept", number(f"{facts.kept:,}")]]
    rows += [[f"Rejected: {reason}", number(f"{count:,}")] for reason, count in facts.rejected.items()]
    parts = [table(["", number("Files")], rows, "narrow")]
    if facts.curated is not None:
        seconds, rate = facts.curated
        parts.append(paragraph(f"Curated in {duration(seconds)}, {rate:,.0f} files decoded a second.", "note"))
    if facts.page is not None:
        more = "with examples of rejected files, copies, concepts and sizes, before and after."
        parts.append(paragraph(Markup(f'<a href="{DATASET_PAGE}">The page of the dataset</a>, {more}')))
    digests = facts.description.get("digests") or {}
    if digests:
        parts.append(table(["Digest", ""], [[name, code(value)] for name, value in digests.items() if value], "narrow"))
    if clusters is not None:
        count = len(facts.clusters)
        caption = f"Some of the {count:,} clusters, a column each, from large to small."
        parts.append(figure(clusters, "clusters of the dataset", caption))
    return join(parts)


def _lineage(content: Content) -> Markup:
    rows = []
    for name, facts in content.lineage:
        known = [
            (key.replace("_", " "), value) for key, value in facts.items() if value not in (None, "") and key != "name"
        ]
        lines = "<br>".join(f"{text(key)} {code(value)}" for key, value in known)
        rows.append([name, Markup(lines)])
    for subject in content.subjects:
        rows.append([subject.title, Markup(f"weights sha256 {code(content.networks[subject.name]['sha256'])}")])
    return table(["Input", "What it was"], rows)


def _protocols(content: Content) -> Markup:
    rows = [[MEASURES[column].title, MEASURES[column].how] for column in _columns(content)]
    baselines = paragraph(
        "Raw pixels: a 16 x 16 thumbnail minus its mean. Colour histogram: 8 x 8 x 8 joint RGB bins, compared by the "
        "Hellinger kernel. For dense measures both are taken of each cell of the teacher's patch grid.",
        "note",
    )
    return join([table(["Measure", "Protocol"], rows), baselines])
