"""Pixels to model input, against a bicubic resize written out in float64 and against Hugging Face's processor."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foundry.errors import UserError
from foundry.images import Preprocessing
from foundry.images.preprocess import MAX_RESIZED_PIXELS


def cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -1/2."""
    x = np.abs(distance)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def weights(length: int, resized: int, first: int, count: int) -> np.ndarray:
    """(count, length): what each output pixel from ``first`` on takes from each input pixel; widened to antialias."""
    scale = length / resized
    centres = (np.arange(first, first + count) + 0.5) * scale
    table = cubic((np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1.0))
    return table / table.sum(axis=1, keepdims=True)


def reference(pixels: np.ndarray, resize: int, crop: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    sizes = [int(resize * side / shorter) if side != shorter else resize for side in (height, width)]
    down = weights(height, sizes[0], (sizes[0] - crop) // 2, crop)
    across = weights(width, sizes[1], (sizes[1] - crop) // 2, crop)
    return np.einsum("yh,xw,hwc->yxc", down, across, pixels.astype(np.float64), optimize=True)


def picture(height: int, width: int) -> np.ndarray:
    """Waves and edges that stay between 40 and 215, so that no overshoot is cut off between two passes."""
    y, x = np.mgrid[:height, :width]
    waves = 128 + 50 * np.sin(x / 5)[..., None] * np.cos(y / np.array([4.0, 7, 11])[:, None, None]).transpose(1, 2, 0)
    return (waves + 30 * ((x // 9 + y // 6) % 2)[..., None]).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "resize", "crop"),
    [
        (100, 133, 72, 48),
        (133, 100, 72, 48),
        (61, 61, 61, 61),
        (64, 64, 64, 32),
        (37, 40, 96, 64),
        (1, 1, 24, 16),
        (3, 50, 40, 33),
        (301, 77, 45, 45),
        (500, 333, 40, 31),
    ],
)
def test_resize_and_crop(height: int, width: int, resize: int, crop: int) -> None:
    pixels = picture(height, width)
    square = Preprocessing(resize, crop).crop_pixels(pixels)
    assert square.shape == (crop, crop, 3) and square.dtype == np.uint8
    # two roundings to whole levels, one after each direction, may add up
    assert np.abs(square - reference(pixels, resize, crop).clip(0, 255)).max() <= 1.2


def test_whole_images_are_pillows_resize_and_a_crop() -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (90, 121, 3)).astype(np.uint8)
    resized = np.asarray(Image.fromarray(pixels).resize((int(64 * 121 / 90), 64), Image.Resampling.BICUBIC))
    left = (resized.shape[1] - 50) // 2
    assert (Preprocessing(64, 50).crop_pixels(pixels) == resized[7:57, left : left + 50]).all()


@pytest.mark.parametrize("shape", [(40, 41 * 400, 3), (41 * 400, 40, 3)])
def test_strips_are_cut_before_they_are_resized(shape: tuple[int, int, int]) -> None:
    pixels = picture(*shape[:2])
    preprocessing = Preprocessing(256, 224)
    assert 256 * 256 * max(shape) // 40 > MAX_RESIZED_PIXELS
    middle = (max(shape) - 400) // 2  # the part around the crop, an even cut on both sides
    part = pixels[:, middle : middle + 400] if shape[1] > shape[0] else pixels[middle : middle + 400]
    difference = np.abs(preprocessing.crop_pixels(pixels).astype(int) - preprocessing.crop_pixels(part))
    assert difference.max() <= 2


def test_extreme_proportions_cost_nothing() -> None:
    # resized whole, this would be 256 x 512 million pixels
    pixels = np.full((1, 2_000_000, 3), 77, np.uint8)
    pixels[:, 999_000:1_001_000] = 200
    for strip in (pixels, pixels.swapaxes(0, 1)):
        assert (Preprocessing(256, 224).crop_pixels(strip) == 200).all()


def test_normalisation() -> None:
    preprocessing = Preprocessing(16, 16, (0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    expected = (pixels.astype(np.float64) / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2.0]
    found = preprocessing(pixels)
    assert found.dtype == np.float32 and found.shape == (3, 16, 16) and found.flags.c_contiguous
    assert (found == expected.transpose(2, 0, 1).astype(np.float32)).all()
    batch = preprocessing.normalise(np.stack([pixels, pixels[::-1]]))
    assert batch.shape == (2, 3, 16, 16) and (batch[0] == found).all()


def test_agrees_with_hugging_face(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers has the processor to compare with")
    processor_class = getattr(transformers, "CLIPImageProcessorPil", None)
    if processor_class is None:
        pytest.skip("this transformers has no processor on Pillow")
    from PIL import Image

    preprocessing = Preprocessing(72, 49)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessing.to_config()))
    processor = processor_class.from_pretrained(tmp_path)
    generator = np.random.default_rng(4)
    for shape in ((100, 133, 3), (134, 101, 3), (40, 37, 3), (300, 555, 3)):
        pixels = generator.integers(0, 256, shape).astype(np.uint8)
        expected = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
        assert np.abs(preprocessing(pixels) - expected).max() < 1e-5


def test_config_round_trip() -> None:
    preprocessing = Preprocessing(64, 56, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    config = json.loads(json.dumps(preprocessing.to_config()))
    assert Preprocessing.from_config(config) == preprocessing
    assert Preprocessing.from_config({**config, "crop_size": {"height": 56.0, "width": 56.0}}) == preprocessing
    assert pickle.loads(pickle.dumps(preprocessing)) == preprocessing
    assert hash(preprocessing) == hash(Preprocessing.from_config(config))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"do_resize": False}, "do_resize = False"),
        ({"do_center_crop": None}, "do_center_crop"),
        ({"size": {"height": 224, "width": 224}}, "shortest_edge"),
        ({"size": {"shortest_edge": 32}}, "crop = 56 is larger than resize = 32"),
        ({"size": {"shortest_edge": 64.5}}, "not a whole number"),
        ({"size": {"shortest_edge": "64"}}, "not a whole number"),
        ({"size": 64}, "size = 64"),
        ({"crop_size": {"height": 56, "width": 48}}, "a square"),
        ({"crop_size": {}}, "crop_size"),
        ({"resample": 2}, "bicubic"),
        ({"rescale_factor": 1 / 127.5}, "1/255"),
        ({"rescale_factor": None}, "1/255"),
        ({"image_mean": [0.5]}, "mean"),
        ({"image_mean": 0.5}, "three numbers"),
        ({"image_std": [0.0, 1.0, 1.0]}, "std"),
        ({"image_std": [float("nan"), 1.0, 1.0]}, "std"),
        ({"image_mean": ["a", "b", "c"]}, "three numbers"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Preprocessing.from_config({**Preprocessing(64, 56).to_config(), **change})
    with pytest.raises(UserError):
        Preprocessing.from_config({})


@pytest.mark.parametrize("values", [{"resize": 0}, {"crop": -1}, {"resize": 10**6}, {"crop": True}, {"resize": 32.5}])
def test_wrong_sizes_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="preprocessing"):
        Preprocessing(**values)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_wrong_arrays_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8 pixels"):
        Preprocessing()(pixels)


def test_views_of_other_arrays_are_taken() -> None:
    pixels = picture(60, 80)
    preprocessing = Preprocessing(32, 24)
    turned = np.ascontiguousarray(pixels.swapaxes(0, 1))
    assert (preprocessing(pixels.swapaxes(0, 1)) == preprocessing(turned)).all()
