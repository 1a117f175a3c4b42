from __future__ import annotations

import numpy as np
import pytest

from components.curation.measurement import measure
from components.curation.windows import best_windows, content_boxes, describe, describe_each, fixed_windows
from tests.components.curation.pictures import crops, photograph


def thumbnails(pieces: list[np.ndarray]) -> np.ndarray:
    return np.stack([measure(piece).grey for piece in pieces])


def test_a_window_is_described_by_its_area_means() -> None:
    grey = thumbnails(crops(2))
    windows = np.array([[0.0, 0.0, 1.0, 1.0], [-0.25, 0.125, 0.375, 0.75]])
    found = describe(grey, windows)
    for number, (x, y, width, height) in enumerate(windows):
        fine = np.kron(grey[1].astype(np.float64), np.ones((24, 24)))  # cells fall on whole points of this grid
        rows = np.rint((np.linspace(y - height, y + height, 13) + 1) / 2 * len(fine)).astype(int)
        columns = np.rint((np.linspace(x - width, x + width, 13) + 1) / 2 * len(fine)).astype(int)
        cells = [fine[rows[i] : rows[i + 1], columns[j] : columns[j + 1]].mean() for i in range(12) for j in range(12)]
        expected = np.array(cells) - np.mean(cells)
        np.testing.assert_allclose(found[1, number], expected / np.linalg.norm(expected), atol=1e-4)
        np.testing.assert_allclose(describe_each(grey, windows[[number, number]])[1], found[1, number], atol=1e-6)


def test_plain_windows_resemble_nothing() -> None:
    assert (describe(np.full((1, 64, 64), 77, np.uint8), fixed_windows()) == 0).all()


def test_content_boxes() -> None:
    image = np.full((4, 64, 64), 250, np.uint8)
    image[0, 10:60, 5:50] = np.random.default_rng(0).integers(0, 200, (50, 45))
    image[1] = np.random.default_rng(1).integers(0, 255, (64, 64))
    image[2, 30:33, 30:33] = 0  # never less than half of the side
    edges = [(10, 60, 5, 50), (0, 64, 0, 64), (16, 48, 16, 48), (16, 48, 16, 48)]
    for box, (top, bottom, left, right) in zip(content_boxes(image), edges, strict=True):
        x, y, half_width, half_height = box
        assert [(v + 1) * 32 for v in (y - half_height, y + half_height, x - half_width, x + half_width)] == [
            top,
            bottom,
            left,
            right,
        ]


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_window_of_a_crop_is_found(mirrored: bool) -> None:
    photo = photograph("astronaut.png")[:480, :480]
    crop = photo[:408, 36:444]  # 85 %: at the top, in the middle
    if mirrored:
        crop = crop[:, ::-1]
    grey = thumbnails([crop, *crops(5), photo])
    found = best_windows(grey, np.array([[0, 3], [0, 6]]))
    assert found.similarity[1] > 0.98 > 0.8 > found.similarity[0]
    assert (found.source[1], found.template[1], bool(found.mirrored[1])) == (6, 0, mirrored)
    np.testing.assert_allclose(found.scale[1], [0.85, 0.85])
    np.testing.assert_allclose(found.offset[1], [0, -0.15], atol=1e-9)


def test_a_frame_is_looked_through() -> None:
    chart = np.full((200, 200, 3), 255, np.uint8)
    chart[20:180, 30:190] = crops(1, 160)[0]
    framed = np.pad(chart, ((37, 37), (37, 37), (0, 0)), constant_values=255)
    found = best_windows(thumbnails([chart, framed]), np.array([[0, 1]]))
    assert found.similarity[0] > 0.97
    scale = 274 / 200 if found.source[0] == 0 else 200 / 274
    np.testing.assert_allclose(found.scale[0], scale, atol=0.06)
