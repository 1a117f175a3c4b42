import numpy as np
import pytest
import torch
from PIL import Image

from foundry.images import Preprocessing
from training.probes.features import Pixels, extract, grid_side, normalise_rows, squash

IMAGES = [np.random.default_rng(seed).integers(0, 256, (20 + seed, 31, 3)).astype(np.uint8) for seed in range(7)]
PREPROCESSING = Preprocessing(resize=18, crop=16)


def model(pixels):
    return {"cls": pixels.mean((2, 3)), "patches": pixels.unfold(2, 8, 8).unfold(3, 8, 8).mean((4, 5)).flatten(2).mT}


@pytest.mark.parametrize("memory", [1 << 20, 0])
@pytest.mark.parametrize("batch", [1, 3, 7, 64])
@pytest.mark.parametrize("workers", [1, 3])
def test_features_in_order_kept_in_memory_or_not(memory, batch, workers):
    pixels = Pixels(len(IMAGES), IMAGES.__getitem__, PREPROCESSING, memory)
    direct = np.stack([PREPROCESSING(image) for image in IMAGES])
    for _ in range(2):
        features = extract(model, pixels, patches=True, batch=batch, workers=workers)
        assert np.allclose(features.cls, direct.mean((2, 3)), atol=1e-6)
        assert np.allclose(features.mean_patch, direct.mean((2, 3)), atol=1e-6)  # cells of equal size
        assert features.patches.shape == (7, 4, 3) and features.grid == 2
        assert np.allclose(features.patches[:, 1], direct[:, :, :8, 8:].mean((2, 3)), atol=1e-6)


def test_images_are_read_once_where_they_fit():
    reads = []

    def load(index):
        reads.append(index)
        return IMAGES[index]

    pixels = Pixels(len(IMAGES), load, PREPROCESSING)
    for _ in range(3):
        extract(model, pixels, batch=2)
    assert reads == list(range(7))


def test_patches_only_where_asked_for():
    assert extract(model, Pixels(2, IMAGES.__getitem__, PREPROCESSING)).patches is None


def test_an_error_of_the_model_is_not_lost():
    def broken(pixels):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        extract(broken, Pixels(7, IMAGES.__getitem__, PREPROCESSING), batch=2, workers=2)


def test_no_images_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        extract(model, Pixels(0, IMAGES.__getitem__, PREPROCESSING))


def test_squash_shows_the_whole_image():
    pixels = Pixels(len(IMAGES), IMAGES.__getitem__, PREPROCESSING, show=squash(12))
    (shown,) = pixels.batches(64)
    small = np.asarray(Image.fromarray(IMAGES[3]).resize((12, 12), Image.Resampling.BICUBIC), np.float64) / 255
    expected = (small - np.array(PREPROCESSING.mean)) / np.array(PREPROCESSING.std)
    assert np.allclose(shown[3], expected.transpose(2, 0, 1), atol=1e-5)


class Layered:
    """Three layers: the mean colour, twice and three times it."""

    blocks = (1, 2, 3)

    def intermediate_layers(self, pixels, layers):
        out = [model(pixels * (1 + layer)) for layer in range(3)]
        return out[-layers:]

    def __call__(self, pixels):
        return self.intermediate_layers(pixels, 1)[0]


def test_embeddings_of_the_last_layers():
    pixels = Pixels(len(IMAGES), IMAGES.__getitem__, PREPROCESSING)
    plain = extract(model, pixels)
    assert len(plain.layers) == 1 and plain.layers[0] is plain.cls
    for layers, there in ((1, 1), (2, 2), (9, 3)):
        deep = extract(Layered(), pixels, layers=layers, batch=3)
        assert len(deep.layers) == there and (deep.layers[-1] == deep.cls).all()
        for number, vectors in enumerate(deep.layers):
            assert np.allclose(vectors, plain.cls * (3 - there + number + 1), atol=1e-5)


def test_grid_side():
    assert [grid_side(count) for count in (1, 4, 49, 196)] == [1, 2, 7, 14]
    with pytest.raises(ValueError, match="50 patches are not a square grid"):
        grid_side(50)


def test_normalise_rows_keeps_zero_rows():
    rows = normalise_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert np.allclose(rows, [[0.6, 0.8], [0, 0]])
    assert torch.from_numpy(rows).dtype == torch.float32
