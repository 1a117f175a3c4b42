"""The distortions of a crop by their definitions, and the same from OpenCV and from torch."""

import colorsys

import numpy as np
import pytest
import torch

from tests.training.data.test_augment import picture
from training.data.distortion import COLUMNS, Distortion, distort_batch
from training.recipe import Crops


def by_torch(image, *drawn):
    rows = torch.from_numpy(np.stack([each.row() for each in drawn]))
    made = distort_batch(torch.from_numpy(image).expand(len(drawn), *image.shape), rows)
    assert made.dtype == torch.float32 and torch.equal(made, made.round()) and 0 <= made.min() <= made.max() <= 255
    return made.numpy().astype(np.uint8)


def by_opencv(image, *drawn):
    return np.stack([each(image) for each in drawn])


both = pytest.mark.parametrize("distorted", [by_opencv, by_torch])


def jitter(brightness, contrast, saturation, hue):
    return Distortion(0, 1, 2, 3, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)


@both
@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        ((0.7, 1.0, 1.0, 0.0), lambda rgb, mean: [0.7 * c for c in rgb]),
        ((1.0, 0.6, 1.0, 0.0), lambda rgb, mean: [0.6 * c + 0.4 * mean for c in rgb]),
        ((1.0, 1.0, 0.8, 0.0), lambda rgb, mean: [0.8 * c + 0.2 * grey(rgb) for c in rgb]),
        ((1.0, 1.0, 1.0, 0.1), lambda rgb, mean: shifted(rgb, 0.1)),
        ((1.0, 1.0, 1.0, -0.1), lambda rgb, mean: shifted(rgb, -0.1)),
    ],
    ids=["brightness", "contrast", "saturation", "hue", "hue back"],
)
def test_jitter_follows_its_definition(distorted, drawn, expected):
    image = picture(5, 6, seed=3)
    mean = np.mean([grey(pixel / 255) for pixel in image.reshape(-1, 3)])
    wanted = [[255 * min(max(c, 0), 1) for c in expected(list(p / 255), mean)] for p in image.reshape(-1, 3)]
    # hue and saturation go through one of 256 levels, as in Pillow, whose own differences reach 14 and 1.2 on average
    differences = np.abs(distorted(image, jitter(*drawn))[0].reshape(-1, 3).astype(float) - wanted)
    assert differences.mean() < 1.2 and differences.max() < 12


def grey(rgb):
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def shifted(rgb, hue):
    h, s, v = colorsys.rgb_to_hsv(*rgb)
    return colorsys.hsv_to_rgb((h + hue) % 1, s, v)


@both
def test_probabilities_of_one_always_happen_and_of_zero_never(distorted):
    image = picture()

    def one(crops, blur=0.0, solarise=0.0):
        return distorted(image, Distortion.draw(crops, blur, solarise, np.random.default_rng(0)))[0]

    none = Crops(colour_jitter=0, greyscale=0)
    assert np.array_equal(one(none), image)
    grey_only = one(Crops(colour_jitter=0, greyscale=1))
    assert (grey_only[..., 0] == grey_only[..., 1]).all() and grey_only.std() > 0
    assert np.array_equal(one(none, solarise=1.0), np.where(image >= 128, 255 - image, image))
    blurred = one(none.model_copy(update={"blur_sigma": (1.5, 1.6)}), blur=1.0)
    assert blurred.std() < 0.6 * image.std()


def test_opencv_and_torch_agree():
    rng, image = np.random.default_rng(4), picture(40, 48, seed=1)
    drawn = [Distortion.draw(Crops(), 0.5, 0.2, rng) for _ in range(200)]
    assert {len(each.order) for each in drawn} == {0, 4} and drawn[0].row().shape == (COLUMNS,)
    unsolarised = np.array([not each.solarised for each in drawn])  # one level becomes 127 at its threshold
    differences = np.abs(by_opencv(image, *drawn).astype(int) - by_torch(image, *drawn))[unsolarised]
    assert differences.mean() < 0.1 and np.quantile(differences, 0.998) <= 3 and differences.max() <= 12
