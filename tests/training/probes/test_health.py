import numpy as np
import pytest
from scipy.special import gammaln, ive
from sklearn.decomposition import PCA

from training.probes.health import (
    dead_dimensions,
    dimensions_holding,
    health,
    mean_cosine,
    outlier_share,
    spectrum,
    uniformity,
)
from training.probes.label_free import feature_rank


@pytest.mark.parametrize("dim", [2, 5, 20])
def test_uniformity_of_directions_spread_evenly(dim):
    """E exp(-2 |x - y|^2) = exp(-4) E exp(4 cos) on the sphere, by a Bessel function."""
    nu = dim / 2 - 1
    log_mean = gammaln(dim / 2) + nu * np.log(2 / 4) + np.log(ive(nu, 4.0)) + 4
    features = 7 * np.random.default_rng(0).normal(size=(2000, dim))
    assert uniformity(features) == pytest.approx(log_mean - 4, abs=0.01)
    assert mean_cosine(features) == pytest.approx(0, abs=0.002)


def test_uniformity_and_cosine_equal_loops_over_pairs():
    x = np.random.default_rng(1).normal(size=(1100, 3)) + 0.5  # more rows than one chunk
    x[5] = 0
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    kernel = cosine = pairs = 0.0
    for i in range(len(x)):
        rest = unit[i + 1 :]
        kernel += np.exp(-2 * ((rest - unit[i]) ** 2).sum(1)).sum()
        cosine += (rest @ unit[i]).sum()
        pairs += len(rest)
    assert uniformity(x) == pytest.approx(np.log(kernel / pairs), abs=1e-6)
    assert mean_cosine(x) == pytest.approx(cosine / pairs, abs=1e-6)


def test_constant_features_are_collapsed():
    result = health(np.full((20, 6), 0.3, np.float32))
    assert result.rank == pytest.approx(1) and result.uniformity == pytest.approx(0, abs=1e-5)
    assert result.mean_cosine == pytest.approx(1)
    assert result.dimensions_90 == result.dimensions_99 == 0 and result.dead == 6
    assert (result.spectrum == 0).all()
    assert result.norm_mean == pytest.approx(0.3 * np.sqrt(6), rel=1e-6) and result.norm_std == pytest.approx(0)
    assert result.patch_outliers is None and "patch_outliers" not in result.measures()


def test_one_hot_features():
    """Each of d directions n times: pairs of equal rows are n - 1 of n d - 1."""
    d, n = 8, 5
    result = health(np.repeat(np.eye(d), n, axis=0))
    same = (n - 1) / (n * d - 1)
    assert result.rank == pytest.approx(d)
    assert result.mean_cosine == pytest.approx(same)
    assert result.uniformity == pytest.approx(np.log(same + (1 - same) * np.exp(-4)))
    # the centred simplex: d - 1 equal eigenvalues
    assert result.spectrum == pytest.approx([1 / (d - 1)] * (d - 1) + [0], abs=1e-9)
    assert (result.dimensions_90, result.dimensions_99, result.dead) == (7, 7, 0)
    assert (result.norm_mean, result.norm_std) == (1, 0)


def test_spectrum_of_a_gaussian():
    rng = np.random.default_rng(2)
    deviations = np.array([8.0, 4.0, 2.0, 1.0, 0.0])
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    x = 30 + rng.normal(size=(4000, 5)) * deviations @ turn.T
    shares = spectrum(x)
    assert shares == pytest.approx(deviations**2 / 85, abs=0.02)
    assert shares == pytest.approx(PCA().fit(x).explained_variance_ratio_, abs=1e-9)
    # 64, 80, 84 and 85 of 85
    result = health(x)
    assert (result.dimensions_90, result.dimensions_99) == (2, 4)
    assert result.rank == feature_rank(x)


@pytest.mark.parametrize(
    ("shares", "part", "count"),
    [([0.5, 0.4, 0.1], 0.9, 2), ([0.5, 0.4, 0.1], 0.91, 3), ([1.0], 0.99, 1), ([0.25] * 4, 1.0, 4)],
)
def test_dimensions_holding(shares, part, count):
    assert dimensions_holding(np.array(shares), part) == count


def test_dead_dimensions():
    x = np.random.default_rng(3).normal(size=(500, 6)) * np.array([1, 1, 2e-3, 5e-4, 0, 1])
    assert dead_dimensions(x + 5) == 2  # a variance of 4e-6 lives, 2.5e-7 does not
    assert dead_dimensions(np.ones((4, 3))) == 3


def test_outliers_among_patches():
    rng = np.random.default_rng(4)
    patches = rng.normal(size=(10, 16, 64)).astype(np.float32)
    patches /= np.linalg.norm(patches, axis=2, keepdims=True)
    patches[:4, 3] *= 10  # four of 160
    patches[5:, 7] *= 2.9
    result = health(rng.normal(size=(10, 64)), patches)
    assert result.patch_outliers == pytest.approx(4 / 160)
    assert result.patch_norm_median == pytest.approx(1, rel=1e-5)
    assert result.patch_norm_max == pytest.approx(10, rel=1e-5)
    assert result.measures()["patch_outliers"] == result.patch_outliers
    assert outlier_share(np.ones(7)) == 0


def test_figures_of_norms_and_names():
    x = np.array([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]])
    result = health(x)
    assert result.norm_mean == pytest.approx(16 / 3) and result.norm_std == pytest.approx(np.std([5, 1, 10]))
    assert "spectrum" not in result.measures() and all(isinstance(each, float) for each in result.measures().values())


def test_what_is_refused():
    good = np.eye(3)
    for bad in (np.ones(4), np.ones((1, 4)), np.array([[1.0, np.nan], [0.0, 1.0]])):
        with pytest.raises(ValueError, match="embeddings"):
            health(bad)
    for bad in (np.ones((3, 4)), np.ones((3, 0, 4)), np.full((3, 2, 2), np.inf)):
        with pytest.raises(ValueError, match="patch features"):
            health(good, bad)
