"""Our views are distributed as those of torchvision v2 with the published settings."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from foundry.home import REPOSITORY
from tests.training.data.view_statistics import NAMES, describe
from training.data.augment import MultiCrop, random_area
from training.data.distortion import Distortion, distort_batch
from training.recipe import Crops

DRAWS = 800
LIKELY = 1e-4
"""The smallest probability, under equal distributions, of a Kolmogorov-Smirnov distance that counts as equal."""
BLURRED = 0.15
"""Noise that both sides get, in standard deviations: on PIL images torchvision cuts off after each operation, a level
of 255 in all, where we round once. Without noise that shifts whole steps of a distribution with repeated values."""


def picture() -> np.ndarray:
    """A photograph with colour, detail and a brighter side."""
    from PIL import Image
    from skimage import data

    return np.asarray(Image.fromarray(data.astronaut()).resize((120, 96), Image.Resampling.LANCZOS))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """What torchvision makes of the picture, in an interpreter of its own: beside it transformers would not import."""
    reference = Path(sys.prefix) / "reference"
    assert (reference / "torchvision").is_dir(), "torchvision is missing: make setup-dev puts it aside"
    folder = tmp_path_factory.mktemp("published")
    np.save(folder / "picture.npy", picture())
    script = Path(__file__).with_name("torchvision_views.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(reference)))}
    done = subprocess.run(
        [sys.executable, script, folder / "picture.npy", folder / "views.npz", str(DRAWS)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return np.load(folder / "views.npz")


def agree(ours: np.ndarray, theirs: np.ndarray) -> None:
    rng = np.random.default_rng(9)
    for number, name in enumerate(NAMES):
        noise = BLURRED * theirs[:, number].std() * rng.uniform(-1, 1, (2, len(ours)))
        probability = ks_2samp(ours[:, number] + noise[0], theirs[:, number] + noise[1]).pvalue
        assert probability > LIKELY, f"{name}: p = {probability:.1e}"


def by_loader(image: np.ndarray, drawn: list[Distortion]) -> list[np.ndarray]:
    return [each(image) for each in drawn]


def by_device(image: np.ndarray, drawn: list[Distortion]) -> list[np.ndarray]:
    made = []
    for start in range(0, len(drawn), 40):
        rows = torch.from_numpy(np.stack([each.row() for each in drawn[start : start + 40]]))
        crops = torch.from_numpy(image.copy()).expand(len(rows), *image.shape)
        made += list(distort_batch(crops, rows).to(torch.uint8).numpy())
    return made


@pytest.mark.parametrize("distorted", [by_loader, by_device])
@pytest.mark.parametrize(("view", "number"), [("first", 0), ("second", 1), ("local", 2)])
def test_colours_blur_and_solarisation(published, view, number, distorted):
    crops, rng = Crops(), np.random.default_rng(1)
    solarise = crops.solarise if view == "second" else 0.0
    drawn = [Distortion.draw(crops, crops.blur[number], solarise, rng) for _ in range(DRAWS)]
    agree(np.stack([describe(image) for image in distorted(picture(), drawn)]), published[view])


@pytest.mark.parametrize(("name", "scale"), [("global", (0.32, 1.0)), ("small", (0.05, 0.32))])
def test_areas(published, name, scale):
    rng = np.random.default_rng(2)
    height, width = picture().shape[:2]
    ours = np.array([random_area(height, width, scale, (3 / 4, 4 / 3), rng) for _ in range(4 * DRAWS)])
    theirs = published[f"areas-{name}"]
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > LIKELY
    shape = [np.log(boxes[:, 3] / boxes[:, 2]) for boxes in (ours, theirs)]
    assert ks_2samp(*shape).pvalue > LIKELY


def test_cropped_resized_and_flipped(published):
    plain = Crops(global_size=32, local_count=0, colour_jitter=0, greyscale=0, blur=(0, 0, 0), solarise=0)
    rng, make = np.random.default_rng(3), MultiCrop(plain)
    ours = np.concatenate([[describe(view) for view in make(picture(), rng).global_] for _ in range(DRAWS // 2)])
    theirs = published["cropped"]
    for number, name in enumerate(NAMES):
        assert ks_2samp(ours[:, number], theirs[:, number]).pvalue > LIKELY, name


def test_another_blur_would_be_seen(published):
    rng = np.random.default_rng(4)
    intended = np.stack([describe(Distortion.draw(Crops(), 1.0, 0.0, rng)(picture())) for _ in range(DRAWS)])
    with pytest.raises(AssertionError, match="contrast|detail"):
        agree(intended, published["first"])
