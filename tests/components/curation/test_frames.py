from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from components.curation.frames import bars, inner_pictures, within
from components.curation.measurement import COLOUR_SIDE, measure
from tests.components.curation.pictures import crops, photograph


def views(pictures: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = [measure(picture) for picture in pictures]
    sizes = np.array([(item.width, item.height) for item in found])
    return np.stack([item.grey for item in found]), np.stack([item.colour for item in found]), sizes


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("width", [12, 17, 40])
def test_the_inside_of_a_framed_photograph_is_the_photograph(level: int, width: int) -> None:
    photo = photograph("coffee.png")[:300, :420]
    framed = np.pad(photo, ((width, width), (width + 5, width), (0, 0)), constant_values=level)
    grey, colour, sizes = views([photo, framed])
    images, inside, tint, inner_sizes, boxes = inner_pictures(grey, colour, sizes)
    assert images.tolist() == [1]
    np.testing.assert_allclose(inner_sizes, [[420, 300]], rtol=0.01)
    height, breadth = framed.shape[:2]
    expected = [5 / breadth, 0, 420 / breadth, 300 / height]
    np.testing.assert_allclose(boxes[0], expected, atol=0.01)
    assert np.corrcoef(inside[0].ravel(), grey[0].ravel())[0, 1] > 0.98
    assert np.corrcoef(tint[0].ravel(), colour[0].ravel())[0, 1] > 0.85
    assert tint.shape == (1, COLOUR_SIDE, COLOUR_SIDE, 2)


def test_what_is_no_frame() -> None:
    drawing = np.full((200, 200, 3), 255, np.uint8)
    drawing[60:140, 40:160] = 0  # a white margin ends in few places at once
    drawing[60:140, 60:140] = crops(1, 80)[0]
    plain = np.zeros((64, 64, 3), np.uint8)
    window = np.zeros((100, 100, 3), np.uint8)
    window[10:90, 10:90] = 200  # nothing inside
    grey, colour, sizes = views([photograph("chelsea.png"), drawing, plain, window])
    assert (bars(grey)[:, :3] == 0).all()
    assert len(inner_pictures(grey, colour, sizes)[0]) == 0
    nothing = inner_pictures(grey[:0], colour[:0], sizes[:0])
    assert [len(part) for part in nothing] == [0] * 5


def test_widths_are_measured_to_a_fraction_of_a_pixel() -> None:
    photo = np.asarray(Image.fromarray(photograph("astronaut.png")).resize((560, 560)))
    for width in (30, 37, 45):
        grey, _, _ = views([np.pad(photo, ((width, 0), (0, width), (0, 0)))])
        expected = [0, width / (560 + width) * 64, width / (560 + width) * 64, 0]
        np.testing.assert_allclose(bars(grey)[:, 0], expected, atol=0.15)


def test_the_whole_box_changes_nothing() -> None:
    picture = crops(1, 64)[0]
    np.testing.assert_array_equal(within(picture, np.array([0.0, 0.0, 1.0, 1.0])), picture)
    half = within(picture[..., :1], np.array([-0.5, 0.5, 0.5, 0.5]))[..., 0]
    expected = np.asarray(Image.fromarray(picture[32:, :32, 0]).resize((64, 64), Image.Resampling.BILINEAR))
    assert np.abs(half.astype(int) - expected).max() <= 1
