"""The pictures of a report, drawn from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from components.evaluation.config import EvaluationConfig
from components.evaluation.curves import plot_bars
from components.evaluation.gates import HISTOGRAM, RAW_PIXELS, Protocol, headline_measure
from components.evaluation.measure import MEASURES, Examination, Material
from components.evaluation.pictures import Neighbours, overlay, sheet, tile
from components.evaluation.report import Pictures
from components.evaluation.subjects import Subject
from training.data.evaluation_set import IGNORE


def images_to_show(material: Material, count: int) -> list[np.ndarray]:
    """Test scenes with masks (half, where there are any) and images of the dataset."""
    masked = min(count // 2, len(material.scenes.get("test", [])))
    scenes = [material.read_scene("test", index) for index in range(masked)]
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
) -> Pictures:
    """The pictures of a report. ``colours`` are each network's PCA tiles of the images ``shown``."""
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
    )


def _segmentation_sheet(
    config: EvaluationConfig, material: Material, subjects: Sequence[Subject], found: Mapping[str, Examination]
) -> tuple[bytes | None, list[tuple[int, str]]]:
    if not material.masks or material.evaluation is None:
        return None, []
    masks = material.masks["test"][: config.pictures]
    scenes = [material.read_scene("test", index) for index in range(len(masks))]
    columns = [("Image", [tile(scene) for scene in scenes])]
    columns.append(("Mask", [overlay(scene, mask) for scene, mask in zip(scenes, masks, strict=True)]))
    for subject in subjects:
        predicted = found[subject.name].segmentations
        columns.append((subject.title, [overlay(scene, mask) for scene, mask in zip(scenes, predicted, strict=True)]))
    present = sorted({int(index) for mask in masks for index in np.unique(mask)} - {IGNORE})
    names = list(material.evaluation.mask_classes.values())
    return sheet(columns), [(index, names[index]) for index in present]


def _neighbour_sheets(
    config: EvaluationConfig, material: Material, subjects: Sequence[Subject], found: Mapping[str, Examination]
) -> tuple[dict[str, bytes], str]:
    if material.names:
        truth = material.labels["test"]
        firsts = [int(np.flatnonzero(truth == label)[0]) for label in np.unique(truth)]
        count = min(config.pictures, len(firsts))
        queries = np.array([firsts[index * len(firsts) // count] for index in range(count)])
        neighbours = Neighbours(
            queries,
            truth,
            material.labels["train"],
            lambda index: material.read("test", index),
            lambda index: material.read("train", index),
            same=False,
        )
        query_key, gallery_key = "test", "train"
        note = (
            "Test images and their nearest train images by cosine similarity of the embeddings. Green: the query's "
            "class; red: another class."
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
