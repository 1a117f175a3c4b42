import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from foundry.errors import UserError
from training.data.evaluation_set import EvaluationSet, LabelledImage

LABELS = "filename,label,split\na/1.png,cat,train\na/2.png,dog,train\nb/3.png,cat,test\n"
MASKS = "filename,mask,split\nb/3.png,m/3.png,test\na/1.png,m/1.png,train\n"
CLASSES = "id,name,ignore\n0,sky,0\n7,road,0\n9,void,1\n"


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def image(seed, shape=(6, 8, 3)):
    return png(np.random.default_rng(seed).integers(0, 256, shape))


FILES = {
    "labels.csv": LABELS.encode(),
    "a/1.png": image(1),
    "a/2.png": image(2),
    "b/3.png": image(3),
}
MASKED = {
    **FILES,
    "masks.csv": MASKS.encode(),
    "classes.csv": CLASSES.encode(),
    "m/1.png": png([[0, 7], [9, 255]]),
    "m/3.png": png([[7, 7], [0, 0]]),
}


def write(folder: Path, files) -> str:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def tar_of(files, mode="w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zip_of(files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def packed(tmp_path, form) -> str:
    tables = {name: data for name, data in MASKED.items() if name.endswith(".csv")}
    images = {name: data for name, data in MASKED.items() if not name.endswith(".csv")}
    if form == "folder":
        return write(tmp_path / "loose", MASKED)
    if form == "tars inside":
        first = {name: data for name, data in images.items() if name.startswith("a/")}
        rest = {name: data for name, data in images.items() if not name.startswith("a/")}
        inside = {"first.tar": tar_of(first), "rest.tar.gz": tar_of(rest, "w:gz")}
        return write(tmp_path / "shards", {**tables, **inside})
    if form == "gzipped table":
        compressed = {name: data for name, data in MASKED.items() if name != "labels.csv"}
        return write(tmp_path / "gz", {**compressed, "labels.csv.gz": gzip.compress(MASKED["labels.csv"])})
    if form == "remote folder":
        system = fsspec.filesystem("memory")
        for name, data in MASKED.items():
            system.pipe_file(f"/evaluation-{tmp_path.name}/{name}", data)
        return f"memory://evaluation-{tmp_path.name}"
    below = {f"set/{name}": data for name, data in MASKED.items()}
    contents = {
        "set.tar": tar_of(MASKED),
        "set.tar.gz": tar_of(below, "w:gz"),
        "set.zip": zip_of(below),
        "flat.zip": zip_of({f"./{name}": data for name, data in MASKED.items()}),
    }
    return str(Path(write(tmp_path, {form: contents[form]})) / form)


FORMS = [
    "folder", "tars inside", "gzipped table", "remote folder", "set.tar", "set.tar.gz", "set.zip", "flat.zip",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_set(tmp_path, form):
    evaluation = EvaluationSet.open(packed(tmp_path, form))
    assert evaluation.has_labels and evaluation.has_masks
    assert evaluation.classes == ("cat", "dog")
    assert evaluation.classification("train") == [LabelledImage("a/1.png", 0), LabelledImage("a/2.png", 1)]
    assert evaluation.classification("test") == [LabelledImage("b/3.png", 0)]
    assert evaluation.classification("val") == []
    assert {name: evaluation.read(name) for name in ("a/1.png", "a/2.png", "b/3.png")} == {
        name: FILES[name] for name in ("a/1.png", "a/2.png", "b/3.png")
    }
    reference = EvaluationSet.open(write(tmp_path / "reference", MASKED))
    assert evaluation.digest() == reference.digest()


def test_digest_changes_with_a_label_and_with_a_pixel(tmp_path):
    base = EvaluationSet.open(write(tmp_path / "a", FILES)).digest()
    other_label = {**FILES, "labels.csv": LABELS.replace("2.png,dog", "2.png,cat").encode()}
    assert EvaluationSet.open(write(tmp_path / "b", other_label)).digest() != base
    assert EvaluationSet.open(write(tmp_path / "c", {**FILES, "b/3.png": image(4)})).digest() != base


def test_masks_become_class_indices(tmp_path):
    evaluation = EvaluationSet.open(write(tmp_path, MASKED))
    assert evaluation.mask_classes == {0: "sky", 7: "road"}
    (train,), (test,) = evaluation.segmentation("train"), evaluation.segmentation("test")
    assert evaluation.read_mask(train).tolist() == [[0, 1], [255, 255]]
    assert evaluation.read_mask(test, (2, 2)).tolist() == [[1, 1], [0, 0]]


def test_without_classes_file_the_train_masks_name_them(tmp_path):
    files = {name: data for name, data in MASKED.items() if name != "classes.csv"}
    evaluation = EvaluationSet.open(write(tmp_path, files))
    assert evaluation.mask_classes == {0: "0", 7: "7", 9: "9"}
    assert evaluation.read_mask(evaluation.segmentation("train")[0]).tolist() == [[0, 1], [2, 255]]


def test_a_palette_png_counts_by_index(tmp_path):
    picture = Image.fromarray(np.array([[7, 0], [0, 7]], np.uint8), mode="P")
    picture.putpalette([200, 10, 10] * 256)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    evaluation = EvaluationSet.open(write(tmp_path, {**MASKED, "m/1.png": buffer.getvalue()}))
    assert evaluation.read_mask(evaluation.segmentation("train")[0]).tolist() == [[1, 0], [0, 1]]


def test_label_file_column_means_masks(tmp_path):
    table = "filename,label_file,split\na/1.png,m/1.png,train\nb/3.png,m/3.png,test\n"
    files = {**MASKED, "labels.csv": table.encode()}
    del files["masks.csv"]
    evaluation = EvaluationSet.open(write(tmp_path, files))
    assert not evaluation.has_labels and evaluation.has_masks
    assert [row.mask for row in evaluation.segmentation("test")] == ["m/3.png"]


def without(files, name):
    return {key: data for key, data in files.items() if key != name}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (without(FILES, "labels.csv"), "holds neither labels.csv nor masks.csv"),
        ({**FILES, "labels.csv": b"filename,label,angle\na/1.png,cat,0\n"}, "has no column 'split'.*train or test"),
        ({**FILES, "labels.csv": b"filename,label,split\n"}, "labels.csv has no rows"),
        ({**FILES, "labels.csv": b"filename,label,split\na/1.png,cat,train\n"}, "no row with split 'test'"),
        (without(FILES, "b/3.png"), "labels.csv names 'b/3.png', which is not there"),
        ({**FILES, "labels.csv": LABELS.replace("3.png,cat", "3.png,fox").encode()}, "class 'fox' but no train image"),
        ({**FILES, "labels.csv": (LABELS + "a/1.png,cat,test\n").encode()}, "lists 'a/1.png' twice"),
        ({**FILES, "labels.csv": LABELS.replace("b/3", "../b/3").encode()}, "does not lie inside the set"),
        ({**FILES, "labels.csv": b"\xff\xfe\x00"}, "not a readable CSV file"),
        ({**without(FILES, "a/1.png"), "bad.tar": b"not a tar at all" * 40}, r"bad\.tar: not a readable tar file"),
        ({**MASKED, "classes.csv": b"id,name\nseven,road\n"}, "id 'seven', which is not a whole number"),
        ({**MASKED, "classes.csv": b"number,name\n7,road\n"}, "classes.csv has no column 'id'"),
    ],
)  # fmt: skip
def test_errors_are_plain(tmp_path, files, message):
    with pytest.raises(UserError, match=message) as caught:
        EvaluationSet.open(write(tmp_path, files))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (png(np.zeros((3, 2))), r"mask m/1.png is 2x3, its image a/1.png 2x2; they must be equal"),
        (png(np.full((2, 2), 5)), "holds class id 5, unknown to classes.csv"),
        (png(np.zeros((2, 2, 3))), "has 3 channels"),
        (b"GIF89a", "is not a readable PNG"),
    ],
)
def test_bad_masks_are_plain_errors(tmp_path, mask, message):
    evaluation = EvaluationSet.open(write(tmp_path, {**MASKED, "m/1.png": mask}))
    with pytest.raises(UserError, match=message):
        evaluation.read_mask(evaluation.segmentation("train")[0], (2, 2))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (None, None, "no such evaluation set"),
        ("set.rar", b"Rar!", "this is another file"),
        ("set.zip", b"PK nothing", "not a readable zip file"),
        ("set.tar.gz", b"\x1f\x8b nothing", "not a readable tar file"),
    ],
)
def test_what_is_no_set_is_a_plain_error(tmp_path, name, data, message):
    path = tmp_path / (name or "nowhere")
    if name:
        path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        EvaluationSet.open(str(path))


def test_links_and_folders_of_a_tar_are_not_files(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("a/1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    files = {**without(FILES, "a/1.png"), "images.tar": buffer.getvalue()}
    with pytest.raises(UserError, match="names 'a/1.png', which is not there"):
        EvaluationSet.open(write(tmp_path, files))


DATA = os.environ.get("FOUNDRY_DATA")


@pytest.mark.skipif(not DATA, reason="FOUNDRY_DATA is not set")
@pytest.mark.parametrize(
    ("name", "classes", "train", "test", "masks"),
    [("caltech20", 20, 600, 400, 0), ("camvid", 0, 0, 0, 57)],
)
def test_real_sets(name, classes, train, test, masks):
    evaluation = EvaluationSet.open(f"{DATA}/{name}")
    assert len(evaluation.classes) == classes
    assert len(evaluation.classification("train")) == train
    assert len(evaluation.classification("test")) == test
    assert len(evaluation.segmentation("test")) == masks
    for row in evaluation.segmentation("test")[:2]:
        with Image.open(io.BytesIO(evaluation.read(row.name))) as picture:
            mask = evaluation.read_mask(row, (picture.height, picture.width))
        assert set(np.unique(mask)) <= {*range(len(evaluation.mask_classes)), 255}


@pytest.mark.skipif(not DATA, reason="FOUNDRY_DATA is not set")
def test_a_real_set_without_splits_is_refused():
    with pytest.raises(UserError, match="labels.csv has no column 'split'"):
        EvaluationSet.open(f"{DATA}/coil100_views")
