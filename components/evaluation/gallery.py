"""The pictures of a report, drawn from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.common.report.html import Markup
from components.evaluation.attention import MOST_EXPLORERS, attention_tiles, explorers
from components.evaluation.config import EvaluationConfig
from components.evaluation.curves import plot_bars
from components.evaluation.gates import HISTOGRAM, RAW_PIXELS, Protocol, headline_measure
from components.evaluation.measure import MEASURES, Examination
from components.evaluation.overlays import DepthRow, depth_sheet, tracking_strip
from components.evaluation.pictures import Neighbours, overlay, sheet, tile
from components.evaluation.report import Pictures
from components.evaluation.subjects import Subject
from foundry.images import Preprocessing
from training.data.evaluation_set import IGNORE
from training.probes.features import Pixels, extract, squash
from training.probes.material import Material

STRIPS = 3
"""Videos whose tracking is shown."""


def images_to_show(material: Material, count: int) -> list[np.ndarray]:
    """Test scenes with masks (half, where there are any) and images of the dataset."""
    scenes: list[np.ndarray] = []
    if material.segmentation:
        test = material.segmentation[0].test
        scenes = [material.read(test.images, index) for index in range(min(count // 2, len(test.names)))]
    wanted = count - len(scenes)
    step = max(len(material.images) // wanted, 1)
    return [*scenes, *material.images[::step][:wanted]]


def draw(
    config: EvaluationConfig,
    material: Material,
    subjects: Sequence[Subject],
    found: Mapping[str, Examination],
    colours: Mapping[str, list[np.ndarray]],
    shown: Sequence[np.ndarray],
    protocol: Protocol,
    clusters: bytes | None,
    looks: Mapping[str, Looks],
) -> Pictures:
    """The pictures of a report. ``colours`` are each network's PCA tiles of the images ``shown``, ``looks`` what else
    was seen in them."""
    measure = headline_measure(protocol)
    factor = 100.0 if MEASURES[measure].share else 1.0
    bars: list[tuple[str, str, float]] = [
        (each.title, each.kind, factor * found[each.name].measures[measure]) for each in subjects
    ]
    bars += [
        (name.capitalize(), "baseline", factor * found[name].measures[measure]) for name in (RAW_PIXELS, HISTOGRAM)
    ]
    columns = [("Image", [tile(image) for image in shown])]
    columns += [(subject.title, colours[subject.name]) for subject in subjects]
    segmentation, classes = _segmentation_sheet(config, material, subjects, found)
    neighbours, note = _neighbour_sheets(config, material, subjects, found)
    return Pictures(
        bars=plot_bars(bars, f"{MEASURES[measure].title} ({'%' if MEASURES[measure].share else 'value'})"),
        pca=sheet(columns),
        segmentation=segmentation,
        mask_classes=classes,
        neighbours=neighbours,
        neighbour_note=note,
        clusters=clusters,
        attention=_attention_sheet(subjects, looks, shown),
        explorers=_explorers(subjects, looks),
        depth=_depth_sheet(config, material, subjects, found),
        tracking=_tracking_strips(material, subjects, found),
    )


@dataclass(frozen=True)
class Looks:
    """Where one network looks in the shown images."""

    attention: list[np.ndarray] | None
    """Tiles of its last block's attention; None for a network without."""
    patches: list[tuple[np.ndarray, np.ndarray]]
    """(square image, (P, D) patch features) of the first of them; only of networks that are looked into."""


def look(model: Any, preprocessing: Preprocessing, shown: Sequence[np.ndarray], explored: int, device: str) -> Looks:
    """Where ``model`` looks in the images ``shown``, and its patches in the first ``explored`` of them."""
    side = 2 * preprocessing.crop
    squares = [tile(image, side) for image in shown[:explored]]
    patches: list[tuple[np.ndarray, np.ndarray]] = []
    if squares:
        pixels = Pixels(len(squares), squares.__getitem__, preprocessing, show=squash(side))
        dense = extract(model, pixels, patches=True, device=device).patches
        assert dense is not None
        patches = list(zip(squares, dense, strict=True))
    return Looks(attention_tiles(model, preprocessing, shown, device), patches)


def _attention_sheet(
    subjects: Sequence[Subject], looks: Mapping[str, Looks], shown: Sequence[np.ndarray]
) -> bytes | None:
    columns = [("Image", [tile(image) for image in shown])]
    for subject in subjects:
        seen = looks.get(subject.name)
        if seen is not None and seen.attention is not None:
            columns.append((subject.title, seen.attention))
    return sheet(columns) if len(columns) > 1 else None


def _explorers(subjects: Sequence[Subject], looks: Mapping[str, Looks]) -> Markup:
    titles = {subject.name: subject.title for subject in subjects}
    rows = [
        (f"{titles[name]}, image {number}", image, patches)
        for name, seen in looks.items()
        for number, (image, patches) in enumerate(seen.patches, start=1)
    ]
    return explorers(rows[:MOST_EXPLORERS])


def _depth_sheet(
    config: EvaluationConfig, material: Material, subjects: Sequence[Subject], found: Mapping[str, Examination]
) -> bytes | None:
    predicted = {
        subject.title: found[subject.name].shown["depths"]
        for subject in subjects
        if subject.kind != "random" and found[subject.name].shown.get("depths")
    }
    if not predicted:
        return None
    test = material.depth[0].test
    rows = []
    for number, truth in enumerate(test.truth[: config.pictures]):
        maps = {title: depths[number] for title, depths in predicted.items()}
        rows.append(DepthRow(material.read(test.images, number), truth, maps))
    return depth_sheet(rows)


def _tracking_strips(
    material: Material, subjects: Sequence[Subject], found: Mapping[str, Examination]
) -> dict[str, bytes]:
    """A strip for each of the first videos."""
    seen = {
        subject.title: found[subject.name].shown["tracking"]
        for subject in subjects
        if subject.kind != "random" and "tracking" in found[subject.name].shown
    }
    strips: dict[str, bytes] = {}
    if not seen:
        return strips
    for clip in material.tracking[0].clips[:STRIPS]:
        places = sorted(next(iter(seen.values()))[clip.name])
        frames = [material.read(clip.frames, place) for place in places]
        truth = []
        for place, frame in zip(places, frames, strict=True):
            read = clip.masks[place]
            truth.append(np.zeros(frame.shape[:2], np.uint8) if read is None else read())
        masks = {title: [strip[clip.name][place] for place in places] for title, strip in seen.items()}
        strips[clip.name] = tracking_strip(frames, truth, masks)
    return strips


def _segmentation_sheet(
    config: EvaluationConfig, material: Material, subjects: Sequence[Subject], found: Mapping[str, Examination]
) -> tuple[bytes | None, list[tuple[int, str]]]:
    if not any(found[subject.name].shown.get("segmentations") for subject in subjects):
        return None, []
    task = material.segmentation[0]
    masks = task.test.truth[: config.pictures]
    scenes = [material.read(task.test.images, index) for index in range(len(masks))]
    columns = [("Image", [tile(scene) for scene in scenes])]
    columns.append(("Mask", [overlay(scene, mask) for scene, mask in zip(scenes, masks, strict=True)]))
    for subject in subjects:
        predicted = found[subject.name].shown["segmentations"]
        columns.append((subject.title, [overlay(scene, mask) for scene, mask in zip(scenes, predicted, strict=True)]))
    present = sorted({int(index) for mask in masks for index in np.unique(mask)} - {IGNORE})
    return sheet(columns), [(index, task.classes[index]) for index in present]


def _neighbour_sheets(
    config: EvaluationConfig, material: Material, subjects: Sequence[Subject], found: Mapping[str, Examination]
) -> tuple[dict[str, bytes], str]:
    if material.classification:
        task = material.classification[0]
        truth = task.test.truth
        firsts = [int(np.flatnonzero(truth == label)[0]) for label in np.unique(truth)]
        count = min(config.pictures, len(firsts))
        queries = np.array([firsts[index * len(firsts) // count] for index in range(count)])
        neighbours = Neighbours(
            queries,
            truth,
            task.train.truth,
            lambda index: material.read(task.test.images, index),
            lambda index: material.read(task.train.images, index),
            same=False,
        )
        query_key, gallery_key = "test", "train"
        note = (
            "Test images and their nearest train images by cosine similarity of the embeddings. Blue frame: the "
            "query's class; orange frame with a cross: another class."
        )
    else:
        step_images = max(len(material.images) // config.pictures, 1)
        queries = np.arange(len(material.images))[::step_images][: config.pictures]
        read = material.images.__getitem__
        neighbours = Neighbours(queries, None, None, read, read, same=True)
        query_key = gallery_key = "images"
        note = "Images of the dataset and their nearest other images by cosine similarity of the embeddings."
    sheets = {}
    for subject in subjects:
        embeddings = found[subject.name].embeddings
        sheets[subject.title] = neighbours.sheet(embeddings[query_key], embeddings[gallery_key])
    return sheets, note
