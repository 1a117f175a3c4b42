"""Evaluation sets that have no table."""

import json
import os
from pathlib import Path

import pytest

from foundry.errors import UserError
from tests.training.data.evaluation_files import PACKINGS, named, packed, palette_png, png, tar_of, write
from training.data.evaluation_set import EvaluationSet, Sequence_

FOLDERS = named(
    "train/cat/1.jpg", "train/cat/deep/2.JPEG", "train/dog/1.png", "test/cat/1.jpg", "val/dog/1.jpg",
    "train/cat/.hidden.jpg", "train/cat/notes.txt", "__MACOSX/train/cat/1.jpg",
)  # fmt: skip
FOLDER_ROWS = {
    "train": [("train/cat/1.jpg", "cat"), ("train/cat/deep/2.JPEG", "cat"), ("train/dog/1.png", "dog")],
    "test": [("test/cat/1.jpg", "cat")],
    "val": [("val/dog/1.jpg", "dog")],
}
SCENES = {
    **named("images/training/a/1.jpg", "images/training/b/2.jpg", "images/validation/a/3.jpg", "images/testing/4.jpg"),
    "annotations/training/a/1.png": png([[0, 1], [2, 2]]),
    "annotations/training/b/2.png": png([[0, 4], [2, 2]]),
    "annotations/validation/a/3.png": png([[4, 0]]),
    "annotations/notes.json": b"{}",
}
BY_SPLIT = {
    **named("train/images/1.jpg", "val/images/1.jpg", "test/images/9.png", "README.txt"),
    "train/labels/1.png": png([[3, 0]]),
    "val/labels/1.png": png([[0, 0]]),
    "test/labels/9.png": png([[3, 3]]),
}
VIDEO = {
    **named(*(f"JPEGImages/480p/swan/0000{number}.jpg" for number in range(3))),
    **named("JPEGImages/480p/goat/00000.jpg", "JPEGImages/480p/goat/00005.jpg", "JPEGImages/1080p/goat/00000.jpg"),
    "Annotations/480p/swan/00000.png": png([[0, 255]]),
    "Annotations/480p/swan/00002.png": png([[255, 0]]),
    "Annotations/480p/goat/00000.png": palette_png([[1, 2]]),
    "Annotations/1080p/goat/00000.png": palette_png([[1, 2]]),
    "ImageSets/480p/val.txt": b"",
}


def sample(key, label, extension="cls"):
    text = json.dumps({"label": label, "width": 3}) if extension == "json" else str(label)
    return {f"{key}.jpg": key.encode(), f"{key}.{extension}": text.encode()}


SHARDS = {
    "train-000.tar": tar_of({**sample("000", 0), **sample("001", 1, "json")}),
    "train-001.tar": tar_of({**sample("000", 1), **sample("./sub/001.v2", 0)}),
    "val-000.tar.gz": tar_of({**sample("000", 1)}, "w:gz"),
}


def rows(evaluation, split):
    return [(row.name, evaluation.classes[row.label]) for row in evaluation.classification(split)]


def without(files, *names):
    return {key: data for key, data in files.items() if key not in names}


@pytest.mark.parametrize("form", PACKINGS)
@pytest.mark.parametrize(
    ("files", "task"), [(FOLDERS, "labels"), (SCENES, "masks"), (BY_SPLIT, "masks"), (VIDEO, "tracking")]
)
def test_every_form_holds_the_same_set(tmp_path, files, task, form):
    evaluation = EvaluationSet.open(packed(tmp_path, files, form))
    reference = EvaluationSet.open(write(tmp_path / "again", files))
    assert evaluation.tasks == (task,)
    # the archives have a folder of their own around the set; where it becomes part of a name, it does so everywhere
    if task == "tracking" and form.startswith("set."):
        assert evaluation.images("test") == [f"top/{name}" for name in reference.images("test")]
    else:
        assert evaluation.digest() == reference.digest()


def test_class_folders_are_what_a_table_would_say(tmp_path):
    evaluation = EvaluationSet.open(write(tmp_path / "a", FOLDERS))
    assert evaluation.classes == ("cat", "dog")
    assert {split: rows(evaluation, split) for split in evaluation.splits} == FOLDER_ROWS
    table = ["filename,label,split"]
    table += [f"{name},{label},{split}" for split, each in FOLDER_ROWS.items() for name, label in each]
    written = {**FOLDERS, "labels.csv": "\n".join(table).encode()}
    assert evaluation.digest() == EvaluationSet.open(write(tmp_path / "b", written)).digest()


@pytest.mark.parametrize("name", ["val", "validation", "Valid"])
def test_validation_folders_serve_as_test(tmp_path, name):
    files = {key.replace("val/", f"{name}/"): data for key, data in FOLDERS.items() if not key.startswith("test")}
    evaluation = EvaluationSet.open(write(tmp_path, files))
    assert evaluation.splits == ["test", "train"]
    assert rows(evaluation, "test") == [(f"{name}/dog/1.jpg", "dog")]


def test_scenes_as_ade_has_them(tmp_path):
    evaluation = EvaluationSet.open(write(tmp_path / "a", SCENES))
    # test images without masks have no truth, so that validation is the test
    assert evaluation.splits == ["test", "train"]
    assert [(row.name, row.mask) for row in evaluation.segmentation("test")] == [
        ("images/validation/a/3.jpg", "annotations/validation/a/3.png")
    ]
    assert len(evaluation.segmentation("train")) == 2
    # nobody said that 0 is not a class
    assert evaluation.mask_classes == {0: "0", 1: "1", 2: "2", 4: "4"}
    assert evaluation.read_mask(evaluation.segmentation("test")[0]).tolist() == [[3, 0]]

    rows = ("Idx Ratio Train Val Stuff Name", "1 0.2 9 1 1 wall", "2 0.1 9 1 1 building", "4 0.1 9 1 1 floor")
    listed = "\n".join(row.replace(" ", "\t") for row in rows).replace("building", "building, edifice").encode()
    evaluation = EvaluationSet.open(write(tmp_path / "b", {**SCENES, "objectInfo150.txt": listed}))
    assert evaluation.mask_classes == {1: "wall", 2: "building, edifice", 4: "floor"}
    assert evaluation.read_mask(evaluation.segmentation("test")[0]).tolist() == [[2, 255]]
    masks = {**SCENES, "objectInfo150.txt": listed, "annotations/validation/a/3.png": png([[3, 0]])}
    evaluation = EvaluationSet.open(write(tmp_path / "c", masks))
    with pytest.raises(UserError, match="holds class id 3, unknown to objectInfo150.txt"):
        evaluation.read_mask(evaluation.segmentation("test")[0])

    own = b"id,name,ignore\n0,none,0\n1,wall,0\n2,building,1\n4,floor,0\n"
    files = {**SCENES, "objectInfo150.txt": listed, "classes.csv": own}
    evaluation = EvaluationSet.open(write(tmp_path / "d", files))
    assert evaluation.mask_classes == {0: "none", 1: "wall", 4: "floor"}


def test_scenes_as_coco_has_them(tmp_path):
    names = {"training": "train2017", "validation": "val2017", "testing": "test2017"}
    files = dict(SCENES)
    for old, new in names.items():
        files = {name.replace(old, new): data for name, data in files.items()}
    evaluation = EvaluationSet.open(write(tmp_path, files))
    assert evaluation.images("test") == ["images/val2017/a/3.jpg"] and len(evaluation.images("train")) == 2


def test_images_and_masks_by_split(tmp_path):
    evaluation = EvaluationSet.open(write(tmp_path, BY_SPLIT))
    assert evaluation.splits == ["test", "train", "val"]
    assert [(row.name, row.mask) for row in evaluation.segmentation("test")] == [
        ("test/images/9.png", "test/labels/9.png")
    ]
    assert evaluation.mask_classes == {0: "0", 3: "3"}


@pytest.mark.parametrize("remote", [False, True])
def test_shards_with_labels(tmp_path, remote):
    evaluation = EvaluationSet.open(packed(tmp_path, SHARDS, "memory" if remote else "folder"))
    assert evaluation.tasks == ("labels",) and evaluation.classes == ("0", "1")
    # samples of different shards may have one key
    assert rows(evaluation, "train") == [
        ("train-000.tar/000.jpg", "0"), ("train-000.tar/001.jpg", "1"), ("train-001.tar/000.jpg", "1"),
    ]  # fmt: skip
    assert rows(evaluation, "test") == [("val-000.tar.gz/000.jpg", "1")]
    assert evaluation.read("train-001.tar/000.jpg") == b"000"
    named_classes = {**SHARDS, "classes.txt": b"cat\r\ndog\r\n"}
    assert EvaluationSet.open(write(tmp_path / "b", named_classes)).classes == ("cat", "dog")


def test_shards_may_lie_in_folders_of_splits_and_name_classes(tmp_path):
    files = {
        "train/00.tar": tar_of({**sample("a", "cat"), **sample("b", "dog")}),
        "test/00.tar": tar_of({"x/c.jpeg": b"c", "x/c.cls": b" dog\n"}),
        "more.tar": tar_of(sample("z", "fox")),
    }
    evaluation = EvaluationSet.open(write(tmp_path, files))
    assert evaluation.classes == ("cat", "dog")
    assert rows(evaluation, "test") == [("test/00.tar/x/c.jpeg", "dog")]


def test_sequences_as_davis_has_them(tmp_path):
    evaluation = EvaluationSet.open(write(tmp_path / "a", VIDEO))
    swan, goat = "480p/swan/0000", "480p/goat/0000"
    assert evaluation.sequences == (
        Sequence_("goat", (f"JPEGImages/{goat}0.jpg", f"JPEGImages/{goat}5.jpg"), (f"Annotations/{goat}0.png", None)),
        Sequence_(
            "swan",
            tuple(f"JPEGImages/{swan}{number}.jpg" for number in range(3)),
            (f"Annotations/{swan}0.png", None, f"Annotations/{swan}2.png"),
        ),
    )
    assert evaluation.read_objects(f"Annotations/{swan}2.png", (1, 2)).tolist() == [[1, 0]]
    # without folders of resolutions, and as one tar a sequence beside a table of its own
    flat = {name.replace("/480p", ""): data for name, data in VIDEO.items() if "1080p" not in name}
    tars = {
        f"{sequence}.tar": tar_of({name: data for name, data in flat.items() if sequence in name})
        for sequence in ("swan", "goat")
    }
    url = write(tmp_path / "b", {**tars, "sequences.csv": b"sequence,frames\nswan,3\n"})
    evaluation = EvaluationSet.open(url)
    assert [len(sequence.frames) for sequence in evaluation.sequences] == [2, 3]
    assert evaluation.sequences[0].masks == ("Annotations/goat/00000.png", None)


NOTHING = "holds neither labels.csv nor masks.csv, nor another table"


def shard(**members: bytes):
    return {**SHARDS, "train-2.tar": tar_of({name.replace("_", "."): data for name, data in members.items()})}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (without(SCENES, "annotations/training/b/2.png"),
         "image images/training/b/2.jpg has no mask annotations/training/b/2.png; add the mask or"),
        (without(SCENES, "annotations/training/a/1.png", "annotations/training/b/2.png"),
         r"layout of image and mask folders has nothing for 'train' \(it has 'val'\)"),
        (without(SCENES, "annotations/validation/a/3.png"), r"has nothing for 'test' \(it has 'train'\); add it"),
        ({**SCENES, "objectInfo150.txt": b"nothing"}, "objectInfo150.txt lists no class"),
        (without(FOLDERS, "test/cat/1.jpg", "val/dog/1.jpg"), "class folders has nothing for 'test' .it has"),
        ({**FOLDERS, **named("test/fox/1.jpg")}, "class folders has test images of class 'fox' but no train image"),
        (named("train/images/1.jpg", "train/labels/1.txt", "test/images/2.jpg"), NOTHING),
        (named("train/rgb/1.jpg", "train/depth/1.png", "test/rgb/2.jpg"), NOTHING),
        (named("train/only/1.jpg", "test/only/1.jpg"), NOTHING),
        (without(VIDEO, "Annotations/480p/swan/00000.png"), "no mask of 'JPEGImages/480p/swan/00000.jpg', the"),
        (without(VIDEO, "JPEGImages/480p/swan/00002.jpg"), "Annotations/480p/swan/00002.png has no frame"),
        ({f"{top}/{name}": data for name, data in VIDEO.items() for top in "ab"}, "'goat' lies in both a/ and b/"),
        (shard(a_jpg=b"", a_cls=b"0", b_jpg=b""), "train-2.tar/b.jpg has no label; give it a .cls"),
        (shard(b_jpg=b"", b_cls=b" "), "train-2.tar/b.jpg has no label"),
        (shard(b_jpg=b"", b_json=b'{"class": 3}'), "train-2.tar/b.jpg has no label"),
        (shard(b_jpg=b"", b_json=b"{"), "train-2.tar/b.jpg has no label"),
        (shard(b_jpg=b"", b_json=b'{"label": [1]}'), "train-2.tar/b.jpg has no label"),
        ({**SHARDS, "classes.txt": b"cat\n"}, "has label 1, but classes.txt names 1 classes"),
        ({**SHARDS, "val-000.tar.gz": tar_of(sample("0", 7))}, "has test images of class '7' but no train image of it"),
    ],
)  # fmt: skip
def test_errors_are_plain(tmp_path, files, message):
    with pytest.raises(UserError, match=message) as caught:
        EvaluationSet.open(write(tmp_path, files))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


DATA = os.environ.get("FOUNDRY_DATA")


@pytest.mark.skipif(not DATA, reason="FOUNDRY_DATA is not set")
@pytest.mark.parametrize("name", ["caltech20", "camvid"])
def test_real_sets_without_their_table_are_the_same(tmp_path, name):
    for tar in [*Path(DATA, name).glob("*.tar"), *Path(DATA, name).glob("classes.csv")]:
        (tmp_path / tar.name).symlink_to(tar)
    bare, full = EvaluationSet.open(str(tmp_path)), EvaluationSet.open(f"{DATA}/{name}")
    assert bare.tasks == full.tasks and bare.classes == full.classes and bare.mask_classes == full.mask_classes
    assert bare.digest() == full.digest()
