import numpy as np
import pytest
from sklearn.decomposition import PCA

from training.probes.pca import pca_colours
from training.probes.retrieval import nearest


def test_colours_equal_scikit_learn_up_to_sign():
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(6, 16, 10)) * np.array([9, 5, 3] + [0.5] * 7) + 4
    colours = pca_colours(patches)
    assert colours.shape == (6, 4, 4, 3) and colours.dtype == np.uint8
    z = PCA(3, whiten=True, svd_solver="full").fit_transform(patches.reshape(-1, 10))
    z *= np.sqrt((len(z) - 1) / len(z)) ** -1  # scikit-learn divides by n - 1
    for channel in range(3):
        ours = colours.reshape(-1, 3)[:, channel].astype(float)
        expected = [255 / (1 + np.exp(-1.2 * sign * z[:, channel])) for sign in (1, -1)]
        assert min(np.abs(ours - each).max() for each in expected) <= 1.0


def test_the_sign_is_fixed():
    patches = np.random.default_rng(1).normal(size=(3, 9, 5))
    assert (pca_colours(patches) == pca_colours(patches.copy())).all()
    assert np.abs(pca_colours(-patches).astype(int) + pca_colours(patches).astype(int) - 255).max() <= 1


def test_few_dimensions_leave_channels_grey():
    colours = pca_colours(np.random.default_rng(2).normal(size=(2, 4, 2)))
    assert (colours[..., 2] == 128).all() and colours[..., 0].std() > 0


@pytest.mark.parametrize("count", [1, 5, 30])
def test_nearest_equals_sorting(count):
    rng = np.random.default_rng(3)
    queries, gallery = rng.normal(size=(7, 6)), rng.normal(size=(20, 6))
    order, similarity = nearest(queries, gallery, count)
    for row, query in enumerate(queries):
        cosine = gallery @ query / np.linalg.norm(gallery, axis=1) / np.linalg.norm(query)
        expected = sorted(range(20), key=lambda index, cosine=cosine: -cosine[index])[:count]
        assert order[row].tolist() == expected
        assert np.allclose(similarity[row], cosine[expected], atol=1e-6)


def test_excluded_rows_are_left_out():
    features = np.random.default_rng(4).normal(size=(8, 5))
    order, similarity = nearest(features, features, 8, np.arange(8))
    assert order.shape == (8, 7)
    assert not (order == np.arange(8)[:, None]).any()
    assert np.isfinite(similarity).all()
