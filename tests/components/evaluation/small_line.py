"""The inputs of an evaluation in small: a dataset, three runs with exports, a labelled set."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
import yaml
from PIL import Image

from foundry.images import Preprocessing
from training.models.build import build_backbone
from training.models.interchange import save_export

VIT = {"arch": "vit", "dim": 24, "depth": 2, "heads": 2, "patch_size": 8, "registers": 1, "layer_scale": 1.0}
CONVNEXT = {"arch": "convnext", "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 24]}
CLASSES = ("stripes", "dots", "waves")


def picture(label: int, seed: int, side: int = 40) -> np.ndarray:
    """An image of class ``label``: a texture at random brightness, colour and phase."""
    rng = np.random.default_rng([label, seed])
    y, x = np.mgrid[0:side, 0:side].astype(float) + rng.uniform(0, 20, (2, 1, 1))
    texture = [np.sin(x), np.sin(x) * np.sin(y), np.sin(0.3 * x + 2 * np.sin(0.3 * y))][label]
    colour = rng.uniform(0.4, 1.0, 3)
    image = 128 + 70 * texture[..., None] * colour + rng.normal(0, 8, (side, side, 3))
    return image.clip(0, 255).astype(np.uint8)


def png(array: np.ndarray) -> bytes:
    """``array`` as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_labelled_set(folder: Path, labels: bool = True, masks: bool = True) -> Path:
    """12 train and 6 test images a class, and 6 + 4 mosaics of two halves."""
    folder.mkdir()
    if labels:
        lines = ["filename,label,split"]
        for split, count in (("train", 12), ("test", 6)):
            for label, name in enumerate(CLASSES):
                for number in range(count):
                    file = f"{split}-{label}-{number}.png"
                    (folder / file).write_bytes(png(picture(label, number + 100 * (split == "test"))))
                    lines.append(f"{file},{name},{split}")
        (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    if masks:
        lines = ["filename,mask,split"]
        for split, count in (("train", 6), ("test", 4)):
            for number in range(count):
                left, right = number % 3, (number + 1) % 3
                scene = picture(left, 500 + number)
                scene[:, 20:] = picture(right, 600 + number)[:, 20:]
                mask = np.full((40, 40), left, np.uint8)
                mask[:, 20:], mask[:, 20] = right, 255
                (folder / f"scene-{split}-{number}.png").write_bytes(png(scene))
                (folder / f"mask-{split}-{number}.png").write_bytes(png(mask))
                lines.append(f"scene-{split}-{number}.png,mask-{split}-{number}.png,{split}")
        (folder / "masks.csv").write_text("\n".join(lines) + "\n")
        rows = "".join(f"{id},{name}\n" for id, name in enumerate(CLASSES))
        (folder / "classes.csv").write_text("id,name\n" + rows)
    return folder


def write_dataset(folder: Path, count: int) -> None:
    """A curated dataset of pictures that colours alone tell apart: a gradient and a disc, in two clusters."""
    (folder / "shards").mkdir(parents=True)
    rows = []
    with tarfile.open(folder / "shards/shard-000000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(count):
            rng = np.random.default_rng(number)
            y, x = np.mgrid[0:48, 0:48] / 48
            image = np.stack([rng.uniform(0, 255) * (0.4 + 0.6 * axis) for axis in (x, y, 1 - x)], axis=-1)
            cx, cy = rng.uniform(0.3, 0.7, 2)
            image[(x - cx) ** 2 + (y - cy) ** 2 < 0.05] = rng.uniform(0, 255, 3)
            data = png(image.astype(np.uint8))
            member = tarfile.TarInfo(f"image{number:04d}.png")
            member.size = len(data)
            row = {"key": member.name, "shard": "shard-000000.tar", "offset": tar.offset + 512, "length": len(data)}
            rows.append({**row, "weight": 1.0, "cluster": f"0/{number % 2}"})
            tar.addfile(member, io.BytesIO(data))
    parquet.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    rejected = [{"path": "a.jpg", "reason": "truncated"}, {"path": "b.jpg", "reason": "duplicate"}]
    rejected.append({"path": "c.jpg", "reason": "duplicate"})
    parquet.write_table(pa.Table.from_pylist(rejected), folder / "rejected.parquet")
    description = {"schema": 1, "counts": {"samples": count}, "digests": {"content": "12ab" * 16}}
    (folder / "dataset.json").write_text(json.dumps(description))


def _exports(root: Path, spec: dict, trained_seed: int, side: int, blind: bool) -> None:
    """An untrained network (``blind``: one that sees nothing) and a "trained" one."""
    for step, seed in ((0, 0), (40, trained_seed)):
        model = build_backbone(spec, seed=seed).eval()
        if step == 0 and blind:
            with torch.no_grad():
                first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
                first.weight.zero_()
        save_export(model, root / f"step-{step:09d}", Preprocessing(resize=side, crop=side))
    (root / "latest").write_text("step-000000040\n")


def _run(folder: Path, name: str, students: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": name, "steps": 40, "batch": 8, "seed": 0}))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(0, 40, 10):
            values = {"loss": 5 - step / 20, "ibot": 2.0, "feature_rank": 3.0, "knn_top1": 0.4 + step / 100}
            if students:
                values = {f"{student}/{key}": value for student in ("vit", "convnext") for key, value in values.items()}
            file.write(json.dumps({"step": step, "time": 0.0, **values}) + "\n")
        file.write('{"step": 40, "ti')  # of a killed writer
    manifest = {"step": name, "fingerprint": "ab" * 32, "digest": "cd" * 32, "git": {"commit": "0123abc"}, "inputs": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def write_line(folder: Path, *, blind: bool = True) -> dict[str, str]:
    """Inputs of the step by name. ``blind``: the untrained networks see nothing, so that any other is better."""
    write_dataset(folder / "dataset", count=24)
    for name in ("pretrained", "refined"):
        _run(folder / name, name)
        _exports(folder / name / "export", VIT, 5 if name == "refined" else 4, 32, blind)
    _run(folder / "students", "students", students=True)
    _exports(folder / "students/students/vit/export", VIT | {"depth": 1}, 6, 32, blind)
    _exports(folder / "students/students/convnext/export", CONVNEXT, 7, 64, blind)
    return {name: str(folder / name) for name in ("dataset", "pretrained", "refined", "students")}


def write_benchmarks(folder: Path) -> dict[str, str]:
    """Sets by name: ``rooms`` (depths), ``things`` (retrieval), ``clips`` (a video in the DAVIS layout), ``objects``
    (boxes), ``matches`` (pairs of points) and ``more`` (further labels)."""
    sets = {name: folder / name for name in ("rooms", "things", "clips", "objects", "matches")}
    for path in sets.values():
        path.mkdir(parents=True)
    lines = ["filename,depth,split,scale"]
    for split, count in (("train", 6), ("test", 4)):
        for number in range(count):
            name = f"{split}-{number}"
            (sets["rooms"] / f"{name}.png").write_bytes(png(picture(number % 3, 700 + number)))
            slope = np.linspace(40, 160, 40)[:, None] + np.zeros((1, 40))
            (sets["rooms"] / f"{name}-depth.png").write_bytes(png(slope.astype(np.uint8)))
            lines.append(f"{name}.png,{name}-depth.png,{split},0.03")
    (sets["rooms"] / "depth.csv").write_text("\n".join(lines) + "\n")
    lines = ["filename,label,role"]
    for label, name in enumerate(CLASSES):
        for number in range(4):
            file, role = f"{name}-{number}.png", "query" if number == 0 else "db"
            (sets["things"] / file).write_bytes(png(picture(label, 800 + number)))
            lines.append(f"{file},{name},{role}")
    (sets["things"] / "retrieval.csv").write_text("\n".join(lines) + "\n")
    for kind in ("JPEGImages", "Annotations"):
        (sets["clips"] / kind / "480p/walk").mkdir(parents=True)
    for number in range(5):
        frame = picture(0, 900, 48)
        frame[10:30, 5 + 4 * number : 25 + 4 * number] = picture(1, 901, 20)
        mask = np.zeros((48, 48), np.uint8)
        mask[10:30, 5 + 4 * number : 25 + 4 * number] = 255
        Image.fromarray(frame).save(sets["clips"] / f"JPEGImages/480p/walk/{number:05d}.jpg", quality=95)
        (sets["clips"] / f"Annotations/480p/walk/{number:05d}.png").write_bytes(png(mask))
    boxes, points = ["filename,left,top,right,bottom"], ["source,target,source_x,source_y,target_x,target_y"]
    for number in range(4):
        scene = picture(0, 950 + number)
        scene[8:28, 10:30] = picture(2, 960 + number, 20)
        (sets["objects"] / f"{number}.png").write_bytes(png(scene))
        boxes.append(f"{number}.png,10,8,30,28")
        shifted = np.roll(scene, 4, axis=1)
        (sets["matches"] / f"{number}-a.png").write_bytes(png(scene))
        (sets["matches"] / f"{number}-b.png").write_bytes(png(shifted))
        points += [f"{number}-a.png,{number}-b.png,{x},{y},{x + 4},{y}" for x, y in ((12, 12), (20, 20), (25, 15))]
    (sets["objects"] / "boxes.csv").write_text("\n".join(boxes) + "\n")
    (sets["matches"] / "pairs.csv").write_text("\n".join(points) + "\n")
    write_labelled_set(folder / "more", masks=False)
    return {name: str(path) for name, path in {**sets, "more": folder / "more"}.items()}
