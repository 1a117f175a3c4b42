"""Every protocol on real sets: networks beside their random weights, raw pixels, colours and the floors of the sets.

    FOUNDRY_DATA=... python tests/benchmarks/protocols.py --folder DIR --network NAME=RUN [--network ...] [--quick]

RUN is a training run (with the export of its first step, its random weights) or any network that the evaluation opens.
The sets are caltech20 (labels), camvid (masks), nyuv2 (depth), davis16 (videos) and coil100_views (retrieval); objects
planted into, and known warps of, caltech20's images stand for discovery and correspondence, 200 of its test images are
corrupted. ``--quick`` leaves the last three and coil out: the protocols whose time and memory the page states. Prints a
table and as its last line one JSON object with figures, seconds, forward passes and peak memory.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

GRID = 32
"""Patches a side of dense protocols: the papers' 1,024."""
QUICK = ("knn", "linear", "logistic", "few_shot", "segmentation", "depth", "tracking", "copies", "health")
WHOLE = (*QUICK, "retrieval", "planted", "warps", "robustness")


def prepare(folder: Path, quick: bool) -> dict[str, str]:
    """Labelled sets by name. Of nyuv2, whose depths are 8 bit, a table that says what they mean is written."""
    data = Path(os.environ["FOUNDRY_DATA"])
    rooms = folder / "nyuv2"
    if not (rooms / "depth.csv").is_file():
        rooms.mkdir(parents=True, exist_ok=True)
        for archive in (data / "nyuv2").glob("*.tar"):
            shutil.copy(archive, rooms)
        with (data / "nyuv2" / "labels.csv").open(newline="") as file:
            rows = [(row["filename"], row["depth_file"], row["split"]) for row in csv.DictReader(file)]
        with (rooms / "depth.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("filename", "depth", "split", "scale", "offset"))
            writer.writerows([*row, 1 / 25.5, 0.5 / 25.5] for row in rows)
    sets = {
        name: str(data / name) for name in ("caltech20", "camvid", "davis16", *([] if quick else ["coil100_views"]))
    }
    return {**sets, "nyuv2": str(rooms)}


def floors(material: Any) -> dict[str, float]:
    """What needs no network at all: the majority class and the mean depth of each place."""
    from training.probes.depth import mean_depth_map, score_depths
    from training.probes.segmentation import majority_map, score_masks

    found = {}
    for task in material.segmentation:
        size = task.test.truth[0].shape
        guess = majority_map(task.train.truth, size, len(task.classes))
        found["miou"] = score_masks([guess] * len(task.test.truth), task.test.truth, len(task.classes)).miou
    for task in material.depth:
        guess = mean_depth_map(task.train.truth, task.test.truth[0].shape)
        scored = score_depths([guess] * len(task.test.truth), task.test.truth)
        found |= {"depth_rmse": scored.measures["rmse"], "depth_delta1": scored.measures["delta1"]}
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where a set's table is written")
    parser.add_argument("--network", action="append", required=True, metavar="NAME=RUN")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)

    from components.evaluation.config import EvaluationConfig
    from components.evaluation.measure import MEASURES, Examiner, patch_of
    from components.evaluation.networks import open_network
    from foundry.images import decode_image
    from training.data.evaluation_set import EvaluationSet
    from training.models.interchange import load_export
    from training.probes.material import Material

    torch.set_num_threads(1)
    protocols = QUICK if options.quick else WHOLE
    config = EvaluationConfig(protocols=protocols, dense_grid=GRID)
    begun = time.perf_counter()
    sets = {name: EvaluationSet.open(url) for name, url in prepare(options.folder, options.quick).items()}
    pictures = sets["caltech20"].classification("test")[:: 400 // 160]
    images = [decode_image(sets["caltech20"].read(row.name)) for row in pictures]
    material = Material(config, images, sets)
    examiner = Examiner(config, material, "cpu")
    seconds = {"sets": time.perf_counter() - begun}
    found: dict[str, dict[str, float]] = {}
    forwards = {}
    last: tuple[Any, int] | None = None
    for given in options.network:
        name, _, url = given.partition("=")
        network = open_network(url, name)
        pairs = [(name, network.model, network.preprocessing)]
        first = Path(url) / "export" / "step-000000000"
        if first.is_dir():
            pairs.append((f"{name}, random weights", *load_export(first)))
        for title, model, preprocessing in pairs:
            begun = time.perf_counter()
            seen = examiner.examine(model.eval(), preprocessing)
            seconds[title] = time.perf_counter() - begun
            found[title], forwards[title] = seen.measures, seen.forwards
            last = preprocessing, patch_of(model)
    assert last is not None
    for name in () if options.quick else ("raw pixels", "colour histogram"):
        found[name] = examiner.examine_baseline(name, *last).measures
    if not options.quick:
        found["floor"] = floors(material)
    columns = [name for name in MEASURES if any(name in each for each in found.values())]
    print("| | " + " | ".join(MEASURES[name].title for name in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for title, measures in found.items():
        cells = []
        for name in columns:
            value = measures.get(name)
            shown = "" if value is None else f"{100 * value:.1f}" if MEASURES[name].share else f"{value:.3f}"
            cells.append(shown)
        print(f"| {title} | " + " | ".join(cells) + " |")
    document = {
        "benchmark": "protocols",
        "measures": {title: {k: round(v, 4) for k, v in each.items()} for title, each in found.items()},
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "images_through_the_network": forwards,
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "cores": len(os.sched_getaffinity(0)),
        "numpy": np.__version__,
    }
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
