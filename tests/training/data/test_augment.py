import math

import numpy as np
import pytest
from PIL import Image
from skimage import data

from training.data.augment import Area, MultiCrop, random_area, resize, shrinkage
from training.data.randomness import Purpose, stream
from training.recipe import Crops


def picture(height=50, width=70, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_views_have_the_recipe_s_sizes():
    views = MultiCrop(Crops(global_size=32, local_size=16, local_count=3, gram_size=64))(
        picture(), stream(0, Purpose.CROPS)
    )
    assert views.global_.shape == (2, 32, 32, 3) and views.local.shape == (3, 16, 16, 3)
    assert views.gram.shape == (2, 64, 64, 3) and views.global_.dtype == np.uint8
    larger = MultiCrop(Crops(global_size=32, local_size=16, local_count=0), scale=2)(
        picture(), stream(0, Purpose.CROPS)
    )
    assert larger.global_.shape == (2, 64, 64, 3) and larger.local.shape == (0, 32, 32, 3) and len(larger.gram) == 0


def test_views_are_a_function_of_seed_step_and_slot():
    crops = MultiCrop(Crops(global_size=32, local_size=16))

    def views(seed, step, slot):
        return crops(picture(), stream(seed, Purpose.CROPS, step, slot)).global_

    assert np.array_equal(views(1, 2, 3), views(1, 2, 3))
    others = [views(*place) for place in [(2, 2, 3), (1, 3, 3), (1, 2, 4)]]
    assert all(not np.array_equal(views(1, 2, 3), other) for other in others)


def test_gram_crop_is_the_undistorted_larger_view_of_the_global_crop():
    plain = Crops(global_size=32, gram_size=64, local_count=0, colour_jitter=0, greyscale=0, blur=(0, 0, 0), solarise=0)
    smooth = np.asarray(Image.fromarray(picture(8, 8)).resize((96, 96), Image.Resampling.BICUBIC))
    views = MultiCrop(plain)(smooth, stream(0, Purpose.CROPS))
    for small, large in zip(views.global_, views.gram, strict=True):
        again = np.asarray(Image.fromarray(large).resize((32, 32), Image.Resampling.BICUBIC))
        assert np.abs(small.astype(int) - again).max() <= 1


def test_random_areas_lie_inside_with_the_wanted_share_and_shape():
    rng = np.random.default_rng(0)
    shares, ratios = [], []
    for _ in range(2000):
        top, left, h, w = random_area(100, 120, (0.32, 1.0), (3 / 4, 4 / 3), rng)
        assert 0 <= top <= 100 - h and 0 <= left <= 120 - w
        shares.append(h * w / 12000)
        ratios.append(math.log(w / h))
    assert 0.3 < min(shares) and max(shares) <= 1.0
    assert abs(np.mean(ratios)) < 0.05 and max(map(abs, ratios)) < math.log(4 / 3) + 0.05


def test_areas_fall_back_to_the_centre_where_none_fits():
    rng = np.random.default_rng(0)
    assert random_area(10, 1000, (0.9, 1.0), (3 / 4, 4 / 3), rng) == (0, 493, 10, 13)


@pytest.mark.parametrize("sides", [(60, 60), (50, 77), (13, 200)])
@pytest.mark.parametrize("size", [20, 60, 96])
def test_resize_is_that_of_pillow(sides, size):
    image = picture(*sides)
    reference = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(resize(image, size).astype(int) - reference).max() <= 1


@pytest.mark.parametrize(("mirrored", "upside_down"), [(False, False), (True, False), (False, True), (True, True)])
def test_an_area_is_cut_and_turned(mirrored, upside_down):
    image = picture(40, 50)
    crop = Area(5, 7, 16, 16, mirrored, upside_down, 16).cut(image, 40, 50)
    assert np.array_equal(crop, image[5:21, 7:23][:: -1 if upside_down else 1, :: -1 if mirrored else 1])


@pytest.mark.parametrize(
    ("sides", "factor"), [((63, 500), 1), ((64, 64), 2), ((127, 300), 2), ((128, 128), 4), ((600, 600), 8)]
)
def test_an_image_is_shrunk_as_far_as_its_smallest_crop_allows(sides, factor):
    areas = [Area(0, 0, *sides, False, False, 32), Area(0, 0, 2000, 2000, False, False, 32)]
    assert shrinkage(areas) == factor


def test_crops_of_a_shrunk_image_are_nearly_those_of_the_whole():
    image = np.asarray(Image.fromarray(data.astronaut()).resize((640, 480), Image.Resampling.BICUBIC))
    plain = Crops(
        global_size=48, local_size=24, local_count=4, colour_jitter=0, greyscale=0, blur=(0, 0, 0), solarise=0
    )
    make, sizes = MultiCrop(plain), plain.sizes()[0]
    areas = make.areas(480, 640, np.random.default_rng(5), sizes)
    factor = shrinkage(areas)
    assert factor > 1
    small = np.asarray(Image.fromarray(image).resize((640 // factor, 480 // factor), Image.Resampling.BOX))
    whole, shrunk = (make.views(each, (480, 640), areas, np.random.default_rng(6), sizes) for each in (image, small))
    for ours, theirs in ((whole.global_, shrunk.global_), (whole.local, shrunk.local)):
        assert np.abs(ours.astype(int) - theirs).mean() < 8  # borders are rounded to the smaller image's pixels
