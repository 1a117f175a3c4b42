import io

import numpy as np
import pytest
from PIL import Image
from skimage import color, data

from training.probes.corruptions import CORRUPTIONS, SEVERITIES, corrupt, robustness

RANDOM = {
    "gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog",
    "elastic_transform",
}  # fmt: skip


@pytest.fixture(scope="module")
def photograph():
    return np.asarray(Image.fromarray(data.astronaut()).resize((224, 224), Image.Resampling.LANCZOS))


def flat(value, side=200):
    return np.full((side, side, 3), value, np.uint8)


def test_the_fifteen_of_the_paper():
    assert len(CORRUPTIONS) == 15 and set(CORRUPTIONS) > RANDOM


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (17, 33), (64, 40), (150, 3)])
def test_any_size_and_equal_seeds(name, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    before = image.copy()
    for severity in (1, 5):
        found = corrupt(image, name, severity, seed=3)
        assert found.shape == image.shape and found.dtype == np.uint8
        assert (found == corrupt(image, name, severity, seed=3)).all()
    assert (image == before).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_distance_from_the_clean_photograph_grows_with_severity(name, photograph):
    distances = [
        float(((corrupt(photograph, name, severity, seed=1).astype(float) - photograph) ** 2).mean())
        for severity in SEVERITIES
    ]
    assert 0 < distances[0]
    assert all(one < two for one, two in zip(distances, distances[1:], strict=False)), distances


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_seeds_matter_where_something_is_random(name, photograph):
    small = photograph[::2, ::2]
    same = (corrupt(small, name, 3, seed=0) == corrupt(small, name, 3, seed=1)).all()
    assert same == (name not in RANDOM)


def test_gaussian_noise_has_the_published_deviation():
    found = corrupt(flat(128), "gaussian_noise", 2, 0) / 255
    assert found.std() == pytest.approx(0.12, rel=0.01)
    assert found.mean() == pytest.approx(128 / 255, abs=0.002)


def test_shot_noise_has_the_variance_of_counted_photons():
    found = corrupt(flat(51), "shot_noise", 1, 0) / 255
    assert found.mean() == pytest.approx(0.2, abs=0.002)
    assert found.var() == pytest.approx(0.2 / 60, rel=0.03)


def test_impulse_noise_turns_the_published_share_black_or_white():
    found = corrupt(flat(100), "impulse_noise", 4, 0)
    assert (found == 0).mean() == pytest.approx(0.17 / 2, abs=0.003)
    assert (found == 255).mean() == pytest.approx(0.17 / 2, abs=0.003)
    assert (found == 100).mean() == pytest.approx(0.83, abs=0.004)


@pytest.mark.parametrize(("side", "severity", "radius"), [(225, 3, 6), (225, 5, 10), (449, 3, 12)])
def test_defocus_spreads_a_point_over_a_disc(side, severity, radius):
    image = flat(0, side)
    image[side // 2 - 2 : side // 2 + 3, side // 2 - 2 : side // 2 + 3] = 255
    found = corrupt(image, "defocus_blur", severity, 0)[..., 0].astype(float)
    y, x = np.mgrid[:side, :side] - side // 2
    distance = np.hypot(x, y)
    assert (found[distance > radius + 5.5] == 0).all()
    inside = found[distance < radius - 4.5] / 255
    assert np.allclose(inside, 25 / (np.pi * radius**2 * (side / 224 / round(side / 224)) ** 2), rtol=0.1)


def test_motion_blur_spreads_a_point_along_one_line():
    image = flat(0, 225)
    image[112, 112] = 255
    found = corrupt(image, "motion_blur", 5, 2)[..., 0].astype(float)
    rows, columns = np.nonzero(found)
    assert len(rows) > 10
    y, x = rows - 112, columns - 112
    direction = np.linalg.svd(np.stack([x, y], 1))[2][0]
    assert np.abs(x * direction[1] - y * direction[0]).max() <= 1.2
    assert abs(np.degrees(np.arctan(direction[1] / direction[0]))) <= 46
    assert np.hypot(x, y).max() <= 2 * 20 + 2


def test_zoom_blur_keeps_the_centre_and_smears_the_rim():
    image = flat(0, 224)
    image[100:124, 100:124] = 255
    image[:, 200:204] = 255
    found = corrupt(image, "zoom_blur", 1, 0)[..., 0]
    assert (found[104:120, 104:120] == 255).all()
    assert found[112, 200:204].max() < 130 and (found[112, 204:210] > 0).any()


@pytest.mark.parametrize("severity", [1, 3])
def test_brightness_raises_the_value_of_hsv(severity, photograph):
    hsv = color.rgb2hsv(photograph)
    hsv[..., 2] = np.clip(hsv[..., 2] + severity / 10, 0, 1)
    expected = np.rint(color.hsv2rgb(hsv) * 255)
    assert np.abs(corrupt(photograph, "brightness", severity, 0) - expected).max() <= 1


def test_contrast_pulls_each_channel_to_its_mean(photograph):
    expected = photograph.astype(float).copy()
    for channel in range(3):
        mean = expected[..., channel].mean()
        expected[..., channel] = mean + 0.2 * (expected[..., channel] - mean)
    assert np.abs(corrupt(photograph, "contrast", 3, 0) - expected).max() <= 0.5 + 1e-6


def test_pixelate_shows_blocks_of_equal_size_at_any_resolution(photograph):
    for factor in (1, 2):
        image = np.kron(photograph, np.ones((factor, factor, 1), np.uint8))
        block = 4 * factor
        found = corrupt(image, "pixelate", 5, 0).astype(int)
        cells = found.reshape(224 // 4, block, 224 // 4, block, 3)
        assert (np.ptp(cells, axis=(1, 3)) == 0).all()
        means = image.reshape(cells.shape).mean((1, 3))
        assert np.abs(cells[:, 0, :, 0] - means).max() <= 1


def test_jpeg_is_pillows_at_the_published_quality(photograph):
    file = io.BytesIO()
    Image.fromarray(photograph).save(file, "JPEG", quality=15)
    assert (corrupt(photograph, "jpeg_compression", 3, 0) == np.asarray(Image.open(file))).all()


def test_fog_and_frost_cover_a_black_image_unevenly():
    for name in ("fog", "frost"):
        found = corrupt(flat(1), name, 3, 0).astype(float)
        assert found.std() > 0
    white = corrupt(flat(255), "fog", 1, 0) / 255
    assert white.min() == pytest.approx(1 / 2.5, abs=0.15) and white.max() <= 1
    assert 20 < corrupt(flat(0), "frost", 3, 0).mean() < 200


def test_snow_brightens_and_falls(photograph):
    found = corrupt(photograph, "snow", 1, 0).astype(int)
    assert (found.astype(int) - photograph >= -1).all()
    flakes = corrupt(flat(0), "snow", 3, 0)[..., 0].astype(float)
    along, across = np.abs(np.diff(flakes, axis=0)).mean(), np.abs(np.diff(flakes, axis=1)).mean()
    assert along < across  # directions are within 45 degrees of the vertical


def test_displacements_keep_colours_and_stay_near():
    """On a ramp, the change of value tells how far pixels moved."""
    x = np.tile(np.arange(224, dtype=np.uint8), (224, 1))
    ramp = np.stack([x, x.T, x], axis=-1)
    moved = corrupt(ramp, "elastic_transform", 3, 0).astype(float) - ramp
    inner = moved[20:-20, 20:-20, :2]
    assert np.sqrt((inner**2).mean()) == pytest.approx(1.9, rel=0.15)
    scattered = (corrupt(ramp, "glass_blur", 5, 0).astype(float) - ramp)[20:-20, 20:-20, :2]
    assert np.abs(scattered).max() <= 2 * 4.5 and abs(scattered.mean()) < 0.1


def test_what_is_refused(photograph):
    with pytest.raises(ValueError, match="'gaussian_nose'.*'gaussian_noise'"):
        corrupt(photograph, "gaussian_nose", 1, 0)
    with pytest.raises(ValueError, match="nearest"):
        corrupt(photograph, "", 1, 0)
    for severity in (0, 6):
        with pytest.raises(ValueError, match="severity"):
            corrupt(photograph, "fog", severity, 0)
    for bad in (photograph / 255, photograph[..., 0], photograph[:0]):
        with pytest.raises(ValueError, match="uint8"):
            corrupt(bad, "fog", 1, 0)


def test_robustness_by_hand():
    accuracies = {"fog": {1: 0.8, 2: 0.6}, "snow": {1: 0.5, 2: 0.3}}
    result = robustness(0.8, accuracies, {"fog": 0.6, "snow": 0.5})
    assert result.by_name == pytest.approx({"fog": 0.7, "snow": 0.4})
    assert result.by_severity == pytest.approx({1: 0.65, 2: 0.45})
    assert result.mean_accuracy == pytest.approx(0.55)
    assert result.relative_drop == pytest.approx(1 - 0.55 / 0.8)
    assert result.corruption_errors == pytest.approx({"fog": (0.2 + 0.4) / 1.2, "snow": (0.5 + 0.7) / 1.0})
    assert result.mce == pytest.approx((0.5 + 1.2) / 2)
    alone = robustness(0.0, accuracies)
    assert alone.mce is None and alone.corruption_errors is None and np.isnan(alone.relative_drop)


def test_what_robustness_refuses():
    with pytest.raises(ValueError, match="'frog'.*'fog'"):
        robustness(0.5, {"frog": {1: 0.2}})
    with pytest.raises(ValueError, match="baseline.*'fog'"):
        robustness(0.5, {"fog": {1: 0.2}}, {"snow": 0.5})
    with pytest.raises(ValueError, match="no accuracy at any severity"):
        robustness(0.5, {"fog": {}})
    with pytest.raises(ValueError, match="no accuracies"):
        robustness(0.5, {})
