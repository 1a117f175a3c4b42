import csv
import hashlib
import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from components.curation.photographs import PHOTOGRAPHS, intersection_over_union, photographs, relight
from components.curation.sample_pool import IGNORE, SampleSettings, build
from foundry.errors import UserError
from training.data.evaluation_set import EvaluationSet
from training.probes.baselines import BASELINES
from training.probes.knn import knn

SMALL = SampleSettings(
    crops=120,
    exact_duplicates=10,
    near_duplicates=40,
    train_per_class=12,
    test_per_class=8,
    train_mosaics=12,
    test_mosaics=6,
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    build(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def truth(sample):
    with (sample / "truth.csv").open() as file:
        return list(csv.DictReader(file))


def content(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_same_settings_give_the_same_bytes_also_over_an_unfinished_try(sample, tmp_path):
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "left-over.jpg").write_bytes(b"of a killed try")
    build(tmp_path, SMALL)
    assert content(tmp_path) == content(sample)


def test_another_seed_gives_other_images(sample, tmp_path):
    tiny = SampleSettings(
        crops=16, exact_duplicates=0, near_duplicates=0, train_per_class=1, test_per_class=1, train_mosaics=1,
        test_mosaics=1, seed=1,
    )  # fmt: skip
    build(tmp_path, tiny)
    shared = set(content(tmp_path / "pool").values()) & set(content(sample / "pool").values())
    assert len(shared) <= 11  # broken files may be the same


def test_truth_lists_every_file_of_the_pool(sample, truth):
    found = {path.relative_to(sample / "pool").as_posix() for path in (sample / "pool").rglob("*") if path.is_file()}
    assert {row["path"] for row in truth} == found
    counts = Counter(row["kind"].split("-")[0] for row in truth)
    assert counts["unique"] + counts["overlap"] == 120 and counts["unique"] > 100
    assert (counts["exact"], counts["near"], counts["broken"]) == (10, 40, 11)
    assert {row["source"] for row in truth if row["kind"] == "unique"} == set(PHOTOGRAPHS)


def test_names_tell_nothing(truth):
    for row in truth:
        stem = row["path"].rsplit(".", 1)[0]
        assert set(stem) <= set("0123456789abcdef/")


def test_kinds_are_what_truth_says(sample, truth):
    def pixels(path):
        with Image.open(sample / "pool" / path) as image:
            return np.asarray(image.convert("RGB"))

    kinds = {row["path"]: row["kind"] for row in truth}
    assert all(kinds[row["of"]] in ("unique", "overlap") for row in truth if row["of"])
    uniques = [(sample / "pool" / row["path"]).read_bytes() for row in truth if row["kind"] == "unique"]
    assert len(set(uniques)) == len(uniques)
    for row in truth:
        data = (sample / "pool" / row["path"]).read_bytes()
        if row["kind"] == "exact":
            assert data == (sample / "pool" / row["of"]).read_bytes()
        elif row["kind"].startswith("near"):
            assert data != (sample / "pool" / row["of"]).read_bytes()
            copy, original = pixels(row["path"]), pixels(row["of"])
            if row["kind"] == "near-mirror":
                original = original[:, ::-1]
            copy = np.asarray(Image.fromarray(copy).resize((16, 16), Image.Resampling.BOX), np.float64)
            small = np.asarray(Image.fromarray(original).resize((16, 16), Image.Resampling.BOX), np.float64)
            if small.std() > 12:
                assert np.corrcoef(copy.ravel(), small.ravel())[0, 1] > 0.75, row
        elif row["kind"].startswith("broken"):
            with pytest.raises((OSError, SyntaxError)):
                Image.open(io.BytesIO(data)).convert("RGB")
        else:
            assert min(pixels(row["path"]).shape[:2]) >= 64
            assert max(pixels(row["path"]).shape[:2]) <= 160


def test_unique_crops_of_the_default_pool_do_not_repeat_a_place():
    rng = np.random.default_rng(0)
    for photograph in photographs()[:4]:
        taken = []
        for _ in range(30):
            taken.append(photograph.choose(rng, test=False, taken=taken, distinct=0.6))
        table = np.array(taken)
        overlap = intersection_over_union(table, table) - np.eye(len(table))
        assert overlap.max() < 0.6


def test_overlap_equals_counting_pixels():
    rng = np.random.default_rng(1)
    corners = rng.integers(0, 12, (20, 2))
    rectangles = np.concatenate([corners, corners + rng.integers(1, 12, (20, 2))], axis=1)
    masks = np.zeros((20, 24, 24), bool)
    for mask, (left, top, right, bottom) in zip(masks, rectangles, strict=True):
        mask[top:bottom, left:right] = True
    both = (masks[:, None] & masks[None]).sum((2, 3))
    either = (masks[:, None] | masks[None]).sum((2, 3))
    assert np.allclose(intersection_over_union(rectangles, rectangles), both / either)


def test_train_and_test_ground_share_no_pixel():
    rng = np.random.default_rng(2)
    for photograph in photographs():
        width, height = photograph.image.size
        painted = {test: np.zeros((height, width), bool) for test in (False, True)}
        for test in (False, True):
            for _ in range(40):
                left, top, right, bottom = photograph.choose(rng, test=test)
                assert 0 <= left < right <= width and 0 <= top < bottom <= height
                painted[test][top:bottom, left:right] = True
        grown = np.zeros_like(painted[True])
        rows, columns = np.nonzero(painted[True])
        for dy in (-4, 0, 4):
            for dx in (-4, 0, 4):
                grown[(rows + dy).clip(0, height - 1), (columns + dx).clip(0, width - 1)] = True
        assert not (grown & painted[False]).any(), photograph.name
        assert painted[False].mean() > 0.2 and painted[True].mean() > 0.08, photograph.name


def test_evaluation_part_is_a_valid_set(sample):
    evaluation = EvaluationSet.open(str(sample / "evaluation"))
    assert evaluation.classes == tuple(PHOTOGRAPHS)
    for split, count in (("train", 12), ("test", 8)):
        labels = [image.label for image in evaluation.classification(split)]
        assert np.bincount(labels).tolist() == [count] * len(PHOTOGRAPHS)
    names = {image.name for split in ("train", "test") for image in evaluation.classification(split)}
    assert all(not any(word in name for word in PHOTOGRAPHS) for name in names)


def test_mosaics_have_two_to_four_sources_with_ignored_borders(sample):
    evaluation = EvaluationSet.open(str(sample / "evaluation"))
    for split, count in (("train", 12), ("test", 6)):
        rows = evaluation.segmentation(split)
        assert len(rows) == count
        for row in rows:
            with Image.open(io.BytesIO(evaluation.read(row.name))) as image:
                mask = evaluation.read_mask(row, (image.height, image.width))
            regions = set(np.unique(mask)) - {IGNORE}
            assert 2 <= len(regions) <= 4
            across = (mask[:, 1:] != mask[:, :-1]) & (mask[:, 1:] != IGNORE) & (mask[:, :-1] != IGNORE)
            down = (mask[1:] != mask[:-1]) & (mask[1:] != IGNORE) & (mask[:-1] != IGNORE)
            assert not across.any() and not down.any()  # a border always lies between two regions
            assert (mask == IGNORE).mean() < 0.15


def test_pixels_and_colours_tell_the_sources_apart_only_in_part(sample):
    evaluation = EvaluationSet.open(str(sample / "evaluation"))
    images, labels = {}, {}
    for split in ("train", "test"):
        rows = evaluation.classification(split)
        labels[split] = np.array([row.label for row in rows])
        images[split] = [np.asarray(Image.open(io.BytesIO(evaluation.read(row.name))).convert("RGB")) for row in rows]
    for name, feature in BASELINES.items():
        vectors = {split: np.stack([feature(image) for image in images[split]]) for split in images}
        top1 = knn(vectors["train"], labels["train"], vectors["test"], labels["test"], ks=(5,)).top1[5]
        assert 1.7 / len(PHOTOGRAPHS) < top1 < 0.65, name


def test_light_changes_keep_the_picture():
    photograph = photographs()[0]
    crop = photograph.image.crop((40, 40, 180, 180))
    original = np.asarray(crop.convert("L"), np.float64).ravel()
    correlations = []
    for seed in range(40):
        lit = np.asarray(relight(crop, np.random.default_rng(seed)).convert("L"), np.float64).ravel()
        correlations.append(np.corrcoef(original, lit)[0, 1])
    assert np.median(correlations) > 0.85 and min(correlations) > 0.4


def test_a_missing_photograph_is_a_plain_error(monkeypatch):
    monkeypatch.setitem(PHOTOGRAPHS, "unicorn", "unicorn.png")
    with pytest.raises(UserError, match=r"unicorn\.png: this scikit-image does not carry"):
        photographs()
