import numpy as np
import pytest
from PIL import Image

from training.probes.baselines import BASELINES, colour_histogram, patch_baseline, raw_pixels

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)


def test_histogram_equals_numpy():
    counts, _ = np.histogramdd(IMAGE.reshape(-1, 3), bins=(8, 8, 8), range=[(0, 256)] * 3)
    expected = np.sqrt(counts.ravel() / counts.sum())
    assert np.allclose(colour_histogram(IMAGE), expected, atol=1e-6)
    assert np.linalg.norm(colour_histogram(IMAGE)) == pytest.approx(1)


def test_histogram_knows_no_places():
    shuffled = np.random.default_rng(1).permutation(IMAGE.reshape(-1, 3)).reshape(IMAGE.shape)
    assert (colour_histogram(shuffled) == colour_histogram(IMAGE)).all()


def test_raw_pixels_are_a_centred_thumbnail():
    small = np.asarray(Image.fromarray(IMAGE).resize((16, 16), Image.Resampling.BICUBIC), np.float64) / 255
    assert np.allclose(raw_pixels(IMAGE), (small - small.mean()).ravel(), atol=1e-5)


def test_cells_are_in_the_order_of_patches():
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:16, 16:] = (200, 0, 0)
    picture[16:, :16] = (0, 200, 0)
    raw = patch_baseline("raw pixels", picture, 2)
    assert raw.shape == (4, 192)
    means = raw.reshape(4, 64, 3).mean(1)
    assert np.allclose(means[[0, 3]], 0, atol=0.06)
    assert means[1].argmax() == 0 and means[1][0] > 0.7
    assert means[2].argmax() == 1 and means[2][1] > 0.7
    histograms = patch_baseline("colour histogram", picture, 2)
    assert histograms.shape == (4, 64)
    assert np.allclose(np.linalg.norm(histograms, axis=1), 1, atol=1e-6)


def test_names():
    assert list(BASELINES) == ["raw pixels", "colour histogram"]
    with pytest.raises(KeyError):
        patch_baseline("sound", IMAGE, 2)
