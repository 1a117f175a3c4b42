"""Depth of an evaluation set."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foundry.errors import UserError
from tests.training.data.evaluation_files import PACKINGS, image, npy, packed, palette_png, png, write
from training.data.evaluation_set import DepthImage, EvaluationSet

METRES = np.array([[0.0, 1.25], [2.5, 9.999]])
DEPTH = {
    "depth.csv": b"filename,depth,split\ni/1.png,d/1.png,train\ni/2.png,d/2.npy,test\n",
    "i/1.png": image(1, (2, 2, 3)),
    "i/2.png": image(2, (2, 2, 3)),
    "d/1.png": png(np.rint(METRES * 1000), np.uint16),
    "d/2.npy": npy(METRES.astype(np.float32)),
}


def one(folder, name, data, columns="", values="", size=None):
    table = f"filename,depth,split{columns}\ni/1.png,{name},train{values}\ni/2.png,{name},test{values}\n"
    evaluation = EvaluationSet.open(write(folder, {**DEPTH, "depth.csv": table.encode(), name: data}))
    return evaluation.read_depth(evaluation.depth("test")[0], size)


@pytest.mark.parametrize("form", PACKINGS)
def test_millimetres_of_a_png_and_metres_of_an_npy(tmp_path, form):
    evaluation = EvaluationSet.open(packed(tmp_path, DEPTH, form))
    assert evaluation.tasks == ("depth",) and evaluation.has_depth
    assert evaluation.depth("train") == [DepthImage("i/1.png", "d/1.png")]
    assert evaluation.images("train") == ["i/1.png"] and evaluation.splits == ["test", "train"]
    for split in ("train", "test"):
        depth = evaluation.read_depth(evaluation.depth(split)[0], (2, 2))
        assert depth.dtype == np.float32
        np.testing.assert_allclose(depth, METRES, atol=1e-6)
    assert evaluation.digest() == EvaluationSet.open(write(tmp_path / "again", DEPTH)).digest()


def test_scale_and_offset_make_metres(tmp_path):
    values = np.array([[0, 1, 254]])
    depth = one(tmp_path / "a", "d/8.png", png(values), ",scale,offset", ",0.5,0.25")
    np.testing.assert_allclose(depth, values * 0.5 + 0.25)
    # a value of 0 is a measured one only with an offset above 0
    np.testing.assert_allclose(one(tmp_path / "b", "d/8.png", png(values), ",scale", ",0.5"), values * 0.5)
    far = one(tmp_path / "c", "d/8.png", png(values), ",scale,offset", ",0.5,-1")
    assert far.tolist() == [[0.0, 0.0, 126.0]]
    whole = one(tmp_path / "d", "d/8.npy", npy(np.array([[0, 7]], np.int32)), ",scale", ",2")
    assert whole.tolist() == [[0.0, 14.0]]


def test_what_is_no_distance_is_not_measured(tmp_path):
    depth = one(tmp_path, "d/x.npy", npy([[np.nan, np.inf, -np.inf], [-1.0, 0.0, 3.5]]))
    assert depth.tolist() == [[0, 0, 0], [0, 0, 3.5]]


def four_bit_png():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(b"\0\x12"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("d/x.png", png([[1, 2]]), "depth d/x.png is an 8-bit PNG, whose unit nobody can know; add a column scale"),
        ("d/x.png", png(np.zeros((2, 2, 3))), "depth d/x.png has 3 channels"),
        ("d/x.png", palette_png([[1, 2]]), "d/x.png has colours or too few bits"),
        ("d/x.png", four_bit_png(), "d/x.png has colours or too few bits"),
        ("d/x.png", b"no", "depth d/x.png is not a readable PNG"),
        ("d/x.npy", b"no", r"depth d/x.npy is not a readable \.npy file"),
        ("d/x.npy", npy(np.zeros((2, 2, 1))), "depth d/x.npy is 2x2x1 of float64, not height x width"),
        ("d/x.npy", npy([["a", "b"]]), "of <U1, not height x width of float metres"),
        ("d/x.npy", npy([[1, 2]]), "holds whole numbers .int64., whose unit"),
        ("d/x.npy", npy(np.array([{}], object)), r"not a readable \.npy file"),
        ("d/x.npy", npy(np.zeros((3, 2))), "depth d/x.npy is 2x3, its image i/2.png 7x5; they must be equal"),
    ],
)
def test_bad_depth_is_a_plain_error(tmp_path, name, data, message):
    with pytest.raises(UserError, match=message) as caught:
        one(tmp_path, name, data, size=(5, 7))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "values", "message"),
    [
        (",scale", ",metric", "depth.csv has scale 'metric', which is not a number"),
        (",scale", ",nan", "has scale 'nan', which is not a number"),
        (",scale", ",0", "has scale '0'; metres a unit are above 0"),
        (",offset", ",inf", "has offset 'inf', which is not a number"),
    ],
)
def test_bad_tables_of_depth_are_plain_errors(tmp_path, columns, values, message):
    with pytest.raises(UserError, match=message):
        one(tmp_path, "d/1.png", DEPTH["d/1.png"], columns, values)


def test_a_column_of_labels_names_depth_files(tmp_path):
    table = (
        "filename,label,label_file,depth_file,scale,split\n"
        "i/1.png,cat,m/1.png,d/8.png,0.5,train\ni/2.png,cat,,d/8.png,0.5,test\ni/3.png,,m/1.png,,,test\n"
    )
    files = {
        **DEPTH,
        "labels.csv": table.encode(),
        "i/3.png": image(3),
        "m/1.png": png([[1, 1]]),
        "d/8.png": png([[4]]),
    }
    del files["depth.csv"]
    evaluation = EvaluationSet.open(write(tmp_path, files))
    assert evaluation.tasks == ("labels", "masks", "depth")
    assert [row.name for row in evaluation.classification("test")] == ["i/2.png"]
    assert [row.name for row in evaluation.segmentation("test")] == ["i/3.png"]
    assert evaluation.depth("test") == [DepthImage("i/2.png", "d/8.png", 0.5)]
    assert evaluation.read_depth(evaluation.depth("test")[0]).tolist() == [[2.0]]
    assert evaluation.images("test") == ["i/2.png", "i/3.png"]


def test_the_digest_covers_depth(tmp_path):
    base = EvaluationSet.open(write(tmp_path / "a", DEPTH)).digest()
    table = DEPTH["depth.csv"].decode().replace("split\n", "split,scale\n").replace("train\n", "train,0.01\n")
    assert EvaluationSet.open(write(tmp_path / "b", {**DEPTH, "depth.csv": table.encode()})).digest() != base
    assert EvaluationSet.open(write(tmp_path / "c", {**DEPTH, "d/2.npy": npy(METRES + 1)})).digest() != base


DATA = os.environ.get("FOUNDRY_DATA")


@pytest.mark.skipif(not DATA, reason="FOUNDRY_DATA is not set")
def test_rooms_as_they_are_have_masks_and_depth_without_a_unit():
    evaluation = EvaluationSet.open(f"{DATA}/nyuv2")
    assert evaluation.tasks == ("masks", "depth")
    # id40 is the list that the masks use; its last class says that it is not scored
    assert len(evaluation.mask_classes) == 39 and evaluation.mask_classes[19] == "floor mat"
    mask = evaluation.read_mask(evaluation.segmentation("test")[0], (480, 640))
    with Image.open(io.BytesIO(evaluation.read(evaluation.segmentation("test")[0].mask))) as picture:
        np.testing.assert_array_equal(mask == 255, np.asarray(picture) == 39)
    with pytest.raises(UserError, match="is an 8-bit PNG, whose unit nobody can know"):
        evaluation.read_depth(evaluation.depth("train")[0])


@pytest.mark.skipif(not DATA, reason="FOUNDRY_DATA is not set")
def test_rooms_with_a_unit_have_the_published_floor(tmp_path):
    for tar in Path(DATA, "nyuv2").glob("*.tar"):
        (tmp_path / tar.name).symlink_to(tar)
    rows = Path(DATA, "nyuv2", "labels.csv").read_text().split()[1:]
    table = ["filename,depth,split,scale,offset"]
    table += [
        f"{name},{depth},{split},{1 / 25.5},{0.5 / 25.5}" for name, depth, _, split, _ in (r.split(",") for r in rows)
    ]
    (tmp_path / "depth.csv").write_text("\n".join(table))
    evaluation = EvaluationSet.open(str(tmp_path))
    train, test = (
        np.stack([evaluation.read_depth(row, (480, 640))[::2, ::2] for row in evaluation.depth(split)])
        for split in ("train", "test")
    )
    assert len(train) == 110 and len(test) == 44 and (train > 0).all()
    mean = train.mean(0, dtype=np.float64)
    # README of the set: mean-depth-map predictor
    assert np.sqrt(((mean - test) ** 2).mean()) == pytest.approx(1.212, abs=2e-3)
    assert (np.abs(mean - test) / test).mean() == pytest.approx(0.451, abs=2e-3)
    assert (np.maximum(mean / test, test / mean) < 1.25).mean() == pytest.approx(0.391, abs=2e-3)
