"""Evaluation sets without a table: what the names of folders, shards and files say.

Read are class folders (``train/CLASS/*.jpg``), images beside masks as ADE20K and COCO-Stuff have them
(``images/training`` with ``annotations/training``) or by split (``train/images`` with ``train/labels``), WebDataset
shards with labels (``train-000.tar`` with ``KEY.jpg`` and ``KEY.cls`` or ``KEY.json``) and DAVIS sequences
(``JPEGImages/480p/SEQ`` with ``Annotations/480p/SEQ``). Each becomes the table that a person would have written.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from foundry.errors import UserError
from training.data.evaluation_source import Below, Folder, Source, Tar
from training.data.evaluation_tables import NO_IDS, MaskIds, Table

ADE_CLASSES = "objectInfo150.txt"
"""ADE20K's list of classes: numbered from 1, so that 0 in a mask is what is none of them and is not scored."""

_IMAGE = r"\.(?:jpe?g|png|webp|bmp|tiff?|gif)$"
_SPLITS = {
    **dict.fromkeys(("train", "training", "train2017"), "train"),
    **dict.fromkeys(("val", "validation", "valid", "val2017"), "val"),
    **dict.fromkeys(("test", "testing", "test2017"), "test"),
}
_SPLIT = f"(?P<folder>{'|'.join(sorted(_SPLITS, key=len, reverse=True))})"
_ROOT = r"^(?P<root>(?:.*?/)?)"
_CLASS_FOLDERS = re.compile(rf"{_ROOT}{_SPLIT}/(?P<label>[^/]+)/.+{_IMAGE}", re.IGNORECASE)
_IMAGES_SPLIT = re.compile(rf"{_ROOT}images/{_SPLIT}/(?P<rest>.+){_IMAGE}", re.IGNORECASE)
_SPLIT_IMAGES = re.compile(rf"{_ROOT}{_SPLIT}/images/(?P<rest>.+){_IMAGE}", re.IGNORECASE)
_MASK_FOLDERS = ("annotations", "labels", "masks")
_NO_CLASSES = {
    "images", "image", "img", "imgs", "jpegimages", "rgb", "labels", "label", "masks", "mask", "annotations",
    "annotation", "segmentation", "depth", "depths", "disparity", "gt",
}  # fmt: skip
"""Folder names that say what kind of file lies there, not which class the image is of."""
_SHARD = re.compile(r"(?:^|[-_./])(train|training|val|validation|valid|test|testing)(?=[-_./])", re.IGNORECASE)
_DAVIS = re.compile(
    r"^(?P<root>(?:.*?/)?)(?P<kind>JPEGImages|Annotations)/(?:(?P<resolution>[^/]+)/)?(?P<sequence>[^/]+)/(?P<frame>[^/]+)$"
)
_DAVIS_RESOLUTION = "480p"


@dataclass(frozen=True)
class Layout:
    """A set without tables: the folder it starts in, and the tables that it amounts to."""

    source: Source
    labels: Table | None = None
    masks: Table | None = None
    ids: MaskIds = NO_IDS
    """What the layout's own files say of the ids in masks."""


def recognise(url: str, source: Source) -> Layout | None:
    """Labels or masks of a set without tables, None where the names say nothing.

    Raises :class:`UserError` where they say it in part: an image without its mask, a sample of a shard without label.
    """
    names = sorted(name for name in source.names() if not _hidden(name))
    for find in (_beside_masks, _shards, _class_folders):
        layout = find(url, source, names)
        if layout is not None:
            return layout
    return None


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX/")) or "/." in name or "/__MACOSX/" in name


def _below(source: Source, root: str) -> Source:
    return Below(source, root) if root else source


def _nearest(roots: Iterable[str]) -> str | None:
    return min(set(roots), key=lambda root: (root.count("/"), root), default=None)


def _beside_masks(url: str, source: Source, names: list[str]) -> Layout | None:
    known = set(names)
    for pattern, order in ((_IMAGES_SPLIT, "{root}{kind}/{folder}/{rest}.png"),
                           (_SPLIT_IMAGES, "{root}{folder}/{kind}/{rest}.png")):  # fmt: skip
        # most names of most sets have no such folder, and the pattern is slow
        images = [match for name in names if "images/" in name.lower() and (match := pattern.match(name))]
        for kind in _MASK_FOLDERS:
            masks = {match.string: order.format(kind=kind, **match.groupdict()) for match in images}
            root = _nearest(match["root"] for match in images if masks[match.string] in known)
            if root is not None:
                inside = [match for match in images if match["root"] == root]
                return _masks_layout(url, source, root, inside, masks, known)
    return None


def _masks_layout(
    url: str, source: Source, root: str, images: list[re.Match[str]], masks: Mapping[str, str], known: set[str]
) -> Layout:
    # ADE20K and COCO publish test images without their masks: such a split has no truth
    with_truth = {match["folder"] for match in images if masks[match.string] in known}
    rows = []
    for match in images:
        if match["folder"] not in with_truth:
            continue
        if masks[match.string] not in known:
            raise UserError(
                f"{url}: image {match.string} has no mask {masks[match.string]}; add the mask or take the image out"
            )
        name, mask = match.string[len(root) :], masks[match.string][len(root) :]
        rows.append({"filename": name, "mask": mask, "split": _SPLITS[match["folder"].lower()]})
    below = _below(source, root)
    table = Table("its layout of image and mask folders", ("filename", "mask", "split"), tuple(rows), layout=True)
    return Layout(below, masks=table, ids=_ade_ids(url, below))


def _ade_ids(url: str, source: Source) -> MaskIds:
    """Classes of ADE20K's own list: a row a class, its number first, its names last, columns parted by tabs."""
    if ADE_CLASSES not in source:
        return NO_IDS
    names = {0: "other"}
    for line in source.read(ADE_CLASSES).decode("utf-8", "replace").splitlines():
        values = line.split("\t") if "\t" in line else line.split(maxsplit=5)
        if values and values[0].strip().isdigit():
            names[int(values[0])] = values[-1].strip()
    if len(names) < 2:
        raise UserError(f"{url}: {ADE_CLASSES} lists no class; each row begins with its number, with tabs between")
    return MaskIds(names, frozenset({0}), ADE_CLASSES)


def _class_folders(url: str, source: Source, names: list[str]) -> Layout | None:
    images = [match for match in map(_CLASS_FOLDERS.match, names) if match]
    classes: dict[str, set[str]] = {}
    for match in images:
        if _SPLITS[match["folder"].lower()] == "train":
            classes.setdefault(match["root"], set()).add(match["label"])
    root = _nearest(
        root for root, found in classes.items() if len(found) > 1 and not _NO_CLASSES & set(map(str.lower, found))
    )
    if root is None:
        return None
    rows = tuple(
        {"filename": match.string[len(root) :], "label": match["label"], "split": _SPLITS[match["folder"].lower()]}
        for match in images
        if match["root"] == root
    )
    table = Table("its layout of class folders", ("filename", "label", "split"), rows, layout=True)
    return Layout(_below(source, root), labels=table)


def _shards(url: str, source: Source, names: list[str]) -> Layout | None:
    if not isinstance(source, Folder):
        return None
    rows = []
    for shard, tar in source.tars().items():
        splits = _SHARD.findall(shard)
        if splits:
            split = _SPLITS[splits[-1].lower()]
            rows += [
                {"filename": f"{shard}/{name}", "label": label, "split": split}
                for name, label in _samples(url, shard, tar).items()
            ]
    if not rows:
        return None
    numbers = all(re.fullmatch(r"-?\d+", row["label"]) for row in rows)
    if numbers and "classes.txt" in source:
        classes = [line.strip() for line in source.read("classes.txt").decode("utf-8-sig", "replace").splitlines()]
        for row in rows:
            if not 0 <= int(row["label"]) < len(classes) or not classes[int(row["label"])]:
                raise UserError(
                    f"{url}: {row['filename']} has label {row['label']}, but classes.txt names {len(classes)} classes "
                    "(line 1 is label 0)"
                )
            row["label"] = classes[int(row["label"])]
    table = Table("its layout of WebDataset shards", ("filename", "label", "split"), tuple(rows), layout=True)
    return Layout(source, labels=table)


def _samples(url: str, shard: str, tar: Tar) -> dict[str, str]:
    """Label of each image of a shard; empty where no sample has any."""
    samples: dict[str, dict[str, str]] = {}
    for name in tar.names():
        # a sample's key ends at the first dot of the file's name
        base = posixpath.basename(name)
        key, _, extension = base.partition(".")
        if not _hidden(name):
            samples.setdefault(name[: len(name) - len(base)] + key, {})[extension.lower()] = name
    images = {
        key: name
        for key, files in samples.items()
        for extension, name in sorted(files.items())
        if re.match(_IMAGE, f".{extension}")
    }
    if not any({"cls", "json"} & samples[key].keys() for key in images):
        return {}
    return {name: _label(url, shard, tar, name, samples[key]) for key, name in sorted(images.items())}


def _label(url: str, shard: str, tar: Tar, image: str, files: Mapping[str, str]) -> str:
    missing = UserError(
        f"{url}: {shard}/{image} has no label; give it a .cls with a class (a number or a name) or a .json with "
        '"label" beside it'
    )
    if "cls" in files:
        text = tar.read(files["cls"]).decode("utf-8", "replace").strip()
    elif "json" in files:
        try:
            label = json.loads(tar.read(files["json"]))["label"]
        except (ValueError, KeyError, TypeError):
            raise missing from None
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise missing
        text = str(label).strip()
    else:
        raise missing
    if not text:
        raise missing
    return str(int(text)) if re.fullmatch(r"-?\d+", text) else text


def davis(url: str, source: Source) -> Table | None:
    """Sequences of the DAVIS layout as a table of tracking, None where there is no annotation of that form.

    Of several resolutions 480p is read where it is there, else the first by name. The folder of a resolution may be
    missing, and JPEGImages may lie in several folders, if no two sequences are called the same.
    """
    found: dict[str, dict[str, dict[tuple[str, str], dict[str, str]]]] = {"JPEGImages": {}, "Annotations": {}}
    for name in source.names():
        candidate = ("JPEGImages/" in name or "Annotations/" in name) and not _hidden(name)
        match = _DAVIS.match(name) if candidate else None
        frame, extension = posixpath.splitext(match["frame"]) if match else ("", "")
        if (
            match
            and (extension.lower() == ".png" or match["kind"] == "JPEGImages")
            and re.match(_IMAGE, extension, re.I)
        ):
            sequences = found[match["kind"]].setdefault(match["resolution"] or "", {})
            sequences.setdefault((match["root"], match["sequence"]), {})[frame] = name
    frames, masks = found["JPEGImages"], found["Annotations"]
    both = sorted(frames.keys() & masks.keys())
    if not both:
        return None
    resolution = _DAVIS_RESOLUTION if _DAVIS_RESOLUTION in both else both[0]
    rows = []
    taken: dict[str, str] = {}
    for (root, sequence), images in sorted(frames[resolution].items()):
        if sequence in taken:
            raise UserError(
                f"{url}: sequence '{sequence}' lies in both {taken[sequence] or 'the set itself'} and {root}; "
                "give the folder of one set"
            )
        taken[sequence] = root
        annotated = masks[resolution].get((root, sequence), {})
        for number, frame in enumerate(sorted(images, key=_frame_order)):
            rows.append(
                {
                    "sequence": sequence,
                    "frame": str(number),
                    "filename": images[frame],
                    "mask": annotated.get(frame, ""),
                }
            )
    for key, annotated in masks[resolution].items():
        for frame, name in annotated.items():
            if frame not in frames[resolution].get(key, {}):
                raise UserError(f"{url}: mask {name} has no frame in JPEGImages; add the frame or take the mask out")
    return Table("its DAVIS layout", ("sequence", "frame", "filename", "mask"), tuple(rows), layout=True)


def _frame_order(name: str) -> tuple[int, str]:
    return (int(name), name) if name.isascii() and name.isdigit() else (-1, name)
