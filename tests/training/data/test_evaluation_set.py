import gzip
import io
import os
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from foundry.errors import UserError
from tests.training.data.evaluation_files import image, named, palette_png, png, tar_of, write, zip_of
from training.data.evaluation_set import EvaluationSet, LabelledImage

LABELS = "filename,label,split\na/1.png,cat,train\na/2.png,dog,train\nb/3.png,cat,test\n"
MASKS = "filename,mask,split\nb/3.png,m/3.png,test\na/1.png,m/1.png,train\n"
CLASSES = "id,name,ignore\n0,sky,0\n7,road,0\n9,void,1\n"


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


PLAIN = {
    "labels.csv": b"filename,label,split\na/1.png,cat,train\na/2.png,dog,train\nb/3.png,cat,test\nb/4.png,cat,val\n",
    **named("a/1.png", "a/2.png", "b/3.png", "b/4.png", "m/1.png", "m/3.png"),
}
PLAIN_MASKS = {
    **PLAIN,
    "masks.csv": MASKS.encode(),
    "classes.csv": b"id,name,ignore\n0,cat,0\n7,dog,0\n9,void,1\n",
}
PLAIN_COLUMN = {**PLAIN, "labels.csv": b"filename,label_file,split\nb/3.png,m/3.png,test\na/1.png,m/1.png,train\n"}


@pytest.mark.parametrize(
    ("files", "digest"),
    [
        (PLAIN, "34a9ab1145edd0f74c0b3c9d9fd3c0f661de6a9a0b014a48c3db90d37b42ee50"),
        (PLAIN_MASKS, "fa70e7ad10417b766e4963f2d1e3e0bd3444e7f226b62db5e9e328012c211c5c"),
        (PLAIN_COLUMN, "44fb36ede0a64798dc6ec3fd7c51fc95c0455abae65a1f641cb2912ae4722e22"),
    ],
)
def test_labels_and_masks_keep_the_digest_of_past_reports(tmp_path, files, digest):
    # as computed when a set had labels and masks only
    assert EvaluationSet.open(write(tmp_path, files)).digest() == digest


def test_all_tasks_of_one_set(tmp_path):
    extra = {
        "depth.csv": b"filename,depth,split\nx/1.png,x/d.npy,train\nx/2.png,x/d.npy,test\nx/3.png,x/d.npy,val\n",
        "retrieval.csv": b"filename,label,role\nx/4.png,cat,query\nx/5.png,cat,db\n",
        "boxes.csv": b"filename,left,top,right,bottom\nx/6.png,0,0,1,1\n",
        "pairs.csv": b"source,target,source_x,source_y,target_x,target_y\nx/7.png,x/8.png,0,0,1,1\n",
        **named(*(f"x/{number}.png" for number in range(1, 9)), "x/d.npy"),
        **named(*(f"JPEGImages/480p/swan/0000{number}.jpg" for number in range(2))),
        **named(*(f"Annotations/480p/swan/0000{number}.png" for number in range(2))),
    }
    evaluation = EvaluationSet.open(write(tmp_path, {**MASKED, **extra}))
    assert evaluation.tasks == ("labels", "masks", "depth", "retrieval", "tracking", "boxes", "pairs")
    assert evaluation.splits == ["test", "train", "val"]
    assert evaluation.images("train") == ["a/1.png", "a/2.png", "x/1.png"]
    assert evaluation.images("val") == ["x/3.png"]
    frames = [f"JPEGImages/480p/swan/0000{number}.jpg" for number in range(2)]
    assert evaluation.images("test") == [*frames, "b/3.png", "x/2.png", *(f"x/{number}.png" for number in range(4, 9))]


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_validation_serves_as_test_where_there_is_none(tmp_path, name):
    table = LABELS.replace("cat,test", f"cat,{name}").encode()
    evaluation = EvaluationSet.open(write(tmp_path / "a", {**FILES, "labels.csv": table}))
    assert evaluation.splits == ["test", "train"]
    assert evaluation.classification("test") == [LabelledImage("b/3.png", 0)]
    both = table + b"b/4.png,dog,test\n"
    evaluation = EvaluationSet.open(write(tmp_path / "b", {**FILES, "labels.csv": both, "b/4.png": image(4)}))
    assert evaluation.classification("test") == [LabelledImage("b/4.png", 1)]
    assert evaluation.classification(name) == [LabelledImage("b/3.png", 0)]


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


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (257, 3), (5, 7)])
def test_masks_of_odd_sizes(tmp_path, shape):
    ids = np.random.default_rng(0).choice([0, 7], shape)
    evaluation = EvaluationSet.open(write(tmp_path, {**MASKED, "m/1.png": png(ids)}))
    np.testing.assert_array_equal(evaluation.read_mask(evaluation.segmentation("train")[0], shape), ids == 7)


def test_an_ignored_id_may_be_larger_than_those_of_a_mask(tmp_path):
    files = {**MASKED, "classes.csv": b"id,name,ignore\n0,sky,0\n7,road,0\n9,void,1\n1000,unknown,1\n"}
    evaluation = EvaluationSet.open(write(tmp_path, {**files, "m/3.png": png([[1000, 7]], np.uint16)}))
    assert evaluation.read_mask(evaluation.segmentation("train")[0]).tolist() == [[0, 1], [255, 255]]
    assert evaluation.read_mask(evaluation.segmentation("test")[0]).tolist() == [[255, 1]]


def test_more_train_ids_than_a_mask_can_hold_are_refused(tmp_path):
    files = {**without(MASKED, "classes.csv"), "m/1.png": png(np.arange(300).reshape(10, 30), np.uint16)}
    with pytest.raises(UserError, match="the train masks hold 299 class ids, more than 255"):
        EvaluationSet.open(write(tmp_path, files)).mask_classes  # noqa: B018


def test_an_id_of_the_test_masks_only_is_refused(tmp_path):
    files = {**without(MASKED, "classes.csv"), "m/3.png": png([[7, 8]])}
    evaluation = EvaluationSet.open(write(tmp_path, files))
    with pytest.raises(UserError, match="mask m/3.png holds class id 8, unknown to the train masks"):
        evaluation.read_mask(evaluation.segmentation("test")[0])


def test_a_list_of_classes_with_suffixes_is_read_by_the_one_that_numbers_them(tmp_path):
    table = b"id5,name5,id2,name2\n0,sky,0,far\n7,road,1,near\n9,other(ignore),1,near\n"
    evaluation = EvaluationSet.open(write(tmp_path / "a", {**MASKED, "classes.csv": table}))
    assert evaluation.mask_classes == {0: "sky", 7: "road"}
    assert evaluation.read_mask(evaluation.segmentation("train")[0]).tolist() == [[0, 1], [255, 255]]
    either = table.replace(b"1,near\n9", b"2,near\n9")
    with pytest.raises(UserError, match=r"classes.csv has no column 'id' \(it has id5, name5, id2, name2\)"):
        EvaluationSet.open(write(tmp_path / "b", {**MASKED, "classes.csv": either}))


def test_a_palette_png_counts_by_index(tmp_path):
    evaluation = EvaluationSet.open(write(tmp_path, {**MASKED, "m/1.png": palette_png([[7, 0], [0, 7]])}))
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
        ({**FILES, "labels.csv": LABELS.replace(",", ";").encode()}, "'filename'.*; separate the columns by commas"),
        ({**FILES, "labels.csv": LABELS.replace("2.png,dog", "2.png,").encode()},
         r"labels.csv has a row without a label \(filename 'a/2.png'\)"),
        ({**FILES, "labels.csv": LABELS.replace("a/2.png", "").encode()}, r"a row without a filename \(label 'dog'\)"),
        ({**MASKED, "masks.csv": MASKS.replace("m/1.png", "").encode()},
         r"masks.csv has a row without a mask \(filename 'a/1.png'\)"),
        (without(MASKED, "m/1.png"), "masks.csv names 'm/1.png', which is not there"),
        ({f"inner/{name}": data for name, data in FILES.items()}, "but inner/labels.csv; give the folder of one set"),
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


def test_loose_files_come_before_tars_and_tars_in_the_order_of_their_names(tmp_path):
    tars = {"b.tar": tar_of({"a/1.png": b"b", "a/2.png": b"b", "b/3.png": b"b"}), "a.tar": tar_of({"a/2.png": b"a"})}
    files = {"labels.csv": LABELS.encode(), "a/1.png": b"loose", **tars}
    evaluation = EvaluationSet.open(write(tmp_path, files))
    assert [evaluation.read(name) for name in ("a/1.png", "a/2.png", "b/3.png")] == [b"loose", b"a", b"b"]


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
    assert evaluation.tasks == (("masks",) if masks else ("labels",))
    assert len(evaluation.classes) == classes
    assert len(evaluation.classification("train")) == train
    assert len(evaluation.classification("test")) == test
    assert len(evaluation.segmentation("test")) == masks
    for row in evaluation.segmentation("test")[:2]:
        with Image.open(io.BytesIO(evaluation.read(row.name))) as picture:
            mask = evaluation.read_mask(row, (picture.height, picture.width))
        assert set(np.unique(mask)) <= {*range(len(evaluation.mask_classes)), 255}
