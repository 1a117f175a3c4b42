"""The fifteen standard corruptions of images in five severities, and robustness measured with them.

Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (the
protocol of ImageNet-C). Written from their descriptions with the constants of their release, for images of any size;
it is not equal to ImageNet-C pixel by pixel, and accuracies under it are to be compared with each other only.

- The constants are for a shorter side of 224 pixels. Lengths in pixels (radii, widths, displacements, flakes, blocks)
  are multiplied by the shorter side / 224. Noise and JPEG act on pixels and blocks whatever the size. Below about 64
  pixels the mildest blurs therefore leave an image as it is.
- Each severity is farther from the clean image than the one before. Where the published constants are not ordered so,
  they are changed: elastic (theirs first shift the whole image, then small regions only; ours displace small regions,
  by a smooth field whose size grows), fog (theirs change the roughness of the clouds too; ours keep one roughness, and
  the second amount of 2.5 is 2.75) and frost (0.8 and 0.9 of texture in the last two in place of 0.7 and 0.75).
- Frost: the release blends photographs of frost, and there is none here. Ours is a synthetic texture: crossing thin
  needles within cloudy patches.
- Glass: each pixel is taken from a random place as far away as the published swaps of neighbours carry it.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

SEVERITIES = (1, 2, 3, 4, 5)
_SIDE = 224
_LONGEST = 1024
"""Pixels of a layer of snow or frost at most, in images far from square."""


def _gaussian_noise(x: np.ndarray, level: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    return x + (0.08, 0.12, 0.18, 0.26, 0.38)[level] * rng.standard_normal(x.shape)


def _shot_noise(x: np.ndarray, level: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Light arrives in a countable number of photons."""
    photons = (60, 25, 12, 5, 3)[level]
    return rng.poisson(x * photons) / photons


def _impulse_noise(x: np.ndarray, level: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Salt and pepper: a share of the values becomes 0 or 1."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    chance = rng.random(x.shape)
    return np.where(chance < share, (chance < share / 2).astype(float), x)


def _defocus_blur(x: np.ndarray, level: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """A disc of light in place of each point, its rim softened."""
    radius, soft = (scale * each for each in ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[level])
    fine = 5
    reach = int(np.ceil(radius + 3 * soft))
    axis = (np.arange((2 * reach + 1) * fine) - ((2 * reach + 1) * fine - 1) / 2) / fine
    disc = (np.hypot(axis[:, None], axis[None, :]) <= radius).astype(np.float64)
    disc = cv2.GaussianBlur(disc, (0, 0), soft * fine, borderType=cv2.BORDER_CONSTANT)
    kernel = disc.reshape(2 * reach + 1, fine, 2 * reach + 1, fine).sum((1, 3))
    return _filtered(x, kernel)


def _glass_blur(x: np.ndarray, level: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Blurred, scattered by random places nearby, blurred again."""
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[level]
    height, width = x.shape[:2]
    x = cv2.GaussianBlur(x, (0, 0), sigma * scale)
    # as wide as the whole numbers from -reach to reach
    most = (reach + 0.5) * scale
    down, across = rng.uniform(-most, most, size=(rounds, 2, height, width)).sum(0)
    rows, columns = np.mgrid[:height, :width]
    across, down = (columns + across).astype(np.float32), (rows + down).astype(np.float32)
    x = cv2.remap(x, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return cv2.GaussianBlur(x, (0, 0), sigma * scale)


def _motion_blur(x: np.ndarray, level: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    return _filtered(x, _trail(radius * scale, sigma * scale, rng.uniform(-45, 45)))


def _zoom_blur(x: np.ndarray, level: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """The mean of the image and of its middle at growing magnification."""
    most, step = ((1.10, 0.01), (1.15, 0.01), (1.20, 0.02), (1.25, 0.02), (1.30, 0.03))[level]
    factors = np.arange(1, most + step / 2, step)
    height, width = x.shape[:2]
    total = x.copy()
    for factor in factors:
        shift = (width - 1) / 2 * (1 - 1 / factor), (height - 1) / 2 * (1 - 1 / factor)
        back = np.array([[1 / factor, 0, shift[0]], [0, 1 / factor, shift[1]]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        total += cv2.warpAffine(x, back, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return total / (len(factors) + 1)


def _snow(x: np.ndarray, level: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Flakes: enlarged noise above a threshold, trailing; the scene behind them is whitened."""
    mean, spread, zoom, threshold, radius, sigma, keep = (
        (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[level]
    height, width = _layer_size(x, scale)
    noise = rng.standard_normal((height, width))
    noise = mean + spread * noise[: int(np.ceil(height / zoom)), : int(np.ceil(width / zoom))]
    flakes = cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)
    flakes = np.where(flakes < threshold, 0.0, np.clip(flakes, 0, 1))
    flakes = _filtered(flakes, _trail(radius, sigma, rng.uniform(-135, -45)))
    flakes = _resized(flakes, x)[..., None]
    whitened = np.maximum(x, (x @ np.array([0.299, 0.587, 0.114]))[..., None] * 1.5 + 0.5)
    return keep * x + (1 - keep) * whitened + flakes + flakes[::-1, ::-1]


def _frost(x: np.ndarray, level: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    kept, added = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.8), (0.6, 0.9))[level]
    return kept * x + added * _resized(_frost_texture(*_layer_size(x, scale), rng), x)


def _fog(x: np.ndarray, level: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Clouds by the diamond-square algorithm, the brightest value kept."""
    amount = (1.5, 2.0, 2.5, 2.75, 3.0)[level]
    clouds = _clouds(x.shape[0], x.shape[1], 1.7, rng)[..., None]
    brightest = x.max()
    return (x + amount * clouds) * brightest / (brightest + amount)


def _brightness(x: np.ndarray, level: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """The value of HSV raised, hue and saturation kept."""
    value = x.max(-1, keepdims=True)
    raised = np.minimum(value + (0.1, 0.2, 0.3, 0.4, 0.5)[level], 1)
    return np.where(value > 0, x * raised / np.maximum(value, 1e-12), raised)


def _contrast(x: np.ndarray, level: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    mean = x.mean((0, 1))
    return (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[level] + mean


def _elastic_transform(x: np.ndarray, level: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Small regions pulled and pushed: a smooth random field (Simard et al. 2003) of given root mean square."""
    size = (0.8, 1.3, 1.9, 2.6, 3.4)[level] * scale
    height, width = x.shape[:2]
    field = rng.uniform(-1, 1, size=(height, width, 2))
    field = cv2.GaussianBlur(field, (0, 0), 4 * scale)
    field *= size / max(np.sqrt((field**2).mean()), 1e-12)
    rows, columns = np.mgrid[:height, :width]
    across, down = (columns + field[..., 0]).astype(np.float32), (rows + field[..., 1]).astype(np.float32)
    return cv2.remap(x, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def _pixelate(x: np.ndarray, level: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Fewer, larger pixels; an image of less than 224 pixels keeps the published share of its own."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[level] / max(scale, 1.0)
    height, width = x.shape[:2]
    image = Image.fromarray(np.rint(x * 255).astype(np.uint8))
    small = image.resize((max(int(width * share), 1), max(int(height * share), 1)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX)) / 255


def _jpeg_compression(x: np.ndarray, level: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    file = io.BytesIO()
    quality = (25, 18, 15, 10, 7)[level]
    Image.fromarray(np.rint(x * 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)) / 255


def _filtered(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    filtered: np.ndarray = cv2.filter2D(x, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)
    return filtered


def _trail(radius: float, sigma: float, degrees: float) -> np.ndarray:
    """(2 r + 1, 2 r + 1) kernel of a point that moves 2 ``radius`` one way, fading as a Gaussian of ``sigma``."""
    along = np.linspace(0, 2 * radius, max(int(np.ceil(8 * radius)), 1) + 1)
    weights = np.exp(-0.5 * (along / sigma) ** 2)
    x, y = along * np.cos(np.radians(degrees)), along * np.sin(np.radians(degrees))
    reach = int(np.ceil(2 * radius))
    kernel = np.zeros((2 * reach + 2, 2 * reach + 2))
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    for right in (0, 1):
        for below in (0, 1):
            share = np.abs(1 - right - (x - left)) * np.abs(1 - below - (y - top))
            np.add.at(kernel, (top + below + reach, left + right + reach), weights * share)
    return kernel[: 2 * reach + 1, : 2 * reach + 1]


def _layer_size(x: np.ndarray, scale: float) -> tuple[int, int]:
    """(h, w) of ``x`` at the published scale, where a layer is drawn so that it looks the same at any size."""
    height, width = x.shape[0] / scale, x.shape[1] / scale
    shrink = min(1.0, _LONGEST / max(height, width))
    return max(round(height * shrink), 1), max(round(width * shrink), 1)


def _resized(layer: np.ndarray, x: np.ndarray) -> np.ndarray:
    smaller = layer.shape[0] > x.shape[0]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    resized: np.ndarray = cv2.resize(layer, (x.shape[1], x.shape[0]), interpolation=how)
    return resized


def _clouds(height: int, width: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """(height, width) float64 from 0 to 1 by the diamond-square algorithm (Fournier et al. 1982), on a torus.

    Each halving of the step divides the random displacement by ``decay``: 2 gives smooth clouds, less gives grain.
    """
    side = 1 << max((max(height, width) - 1).bit_length(), 6)
    field = np.zeros((side, side))
    step, size = side, 1.0
    while step > 1:
        half = step // 2
        corners = field[::step, ::step]
        sums = corners + np.roll(corners, -1, 0)
        middles = (sums + np.roll(sums, -1, 1)) / 4 + size * rng.uniform(-1, 1, corners.shape)
        field[half::step, half::step] = middles
        # each edge lies between two corners and two middles
        level = corners + np.roll(corners, -1, 1) + middles + np.roll(middles, 1, 0)
        upright = corners + np.roll(corners, -1, 0) + middles + np.roll(middles, 1, 1)
        field[::step, half::step] = level / 4 + size * rng.uniform(-1, 1, corners.shape)
        field[half::step, ::step] = upright / 4 + size * rng.uniform(-1, 1, corners.shape)
        step, size = half, size / decay
    field = (field - field.min()) / (field.max() - field.min())
    return field[:height, :width]


def _frost_texture(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """(height, width, 3) float64 from 0 to 1: crossing needles of ice in cloudy patches, bluish white."""
    needles = np.zeros((height, width))
    turn = rng.uniform(0, 60)
    for degrees in (turn, turn + 60, turn + 120):
        seeds = (rng.random((height, width)) < 0.02).astype(np.float64)
        needles = np.maximum(needles, _filtered(seeds, _trail(12, 10, degrees)))
    needles = np.clip(needles / 0.1, 0, 1)
    cover = np.clip(2 * _clouds(height, width, 1.7, rng) - 0.4, 0, 1)
    ice = cover * (0.5 + 0.5 * needles)
    return ice[..., None] * np.array([0.86, 0.94, 1.0])


CORRUPTIONS: dict[str, Callable[[np.ndarray, int, float, np.random.Generator], np.ndarray]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
"""Name as in ImageNet-C -> the corruption of (H, W, 3) float64 from 0 to 1."""


def corrupt(image: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    """``image`` (H, W, 3) uint8 RGB under the corruption ``name`` of :data:`CORRUPTIONS`; same shape and type.

    ``severity`` is 1 to 5. What is random depends on ``seed`` and the name only, so that the severities of one image
    show the same flakes, clouds and directions, stronger each time where the corruption allows; give each image its own
    seed. Raises :class:`ValueError` for another name (naming the nearest), severity, shape or type.
    """
    _check_name(name)
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity} is not one of 1 to 5")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"an image to corrupt is (H, W, 3) uint8, not {image.shape} {image.dtype}")
    rng = np.random.default_rng([seed, list(CORRUPTIONS).index(name)])
    scale = min(image.shape[:2]) / _SIDE
    x = CORRUPTIONS[name](image / 255.0, severity - 1, scale, rng)
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def _check_name(name: str) -> None:
    if name not in CORRUPTIONS:
        near = difflib.get_close_matches(name, CORRUPTIONS, n=1, cutoff=0.0)[0]
        raise ValueError(f"no corruption is called {name!r}; the nearest is {near!r}")


@dataclass(frozen=True)
class RobustnessResult:
    """Accuracy under corruption. All figures are fractions."""

    mean_accuracy: float
    """Mean over the corruptions of the mean over their severities (mCA)."""
    relative_drop: float
    """1 - mean accuracy / clean accuracy; not a number where the clean accuracy is 0."""
    by_name: dict[str, float]
    """Mean accuracy over the severities of each corruption."""
    by_severity: dict[int, float]
    """Mean accuracy over the corruptions at each severity."""
    corruption_errors: dict[str, float] | None
    """CE of each corruption: summed errors over those of the baseline."""
    mce: float | None
    """Mean corruption error: the mean of those; 1 is as good as the baseline, less is better."""


def robustness(
    clean_accuracy: float,
    accuracies: Mapping[str, Mapping[int, float]],
    baseline_errors: Mapping[str, float] | None = None,
) -> RobustnessResult:
    """Summarise accuracies (fractions) by corruption and severity (Hendrycks and Dietterich 2019, section 4.1).

    ``baseline_errors`` are the mean errors (fractions, over the same severities of the same images) of another network,
    AlexNet in the paper: CE = sum of errors / sum of the baseline's errors. Raises :class:`ValueError` for an unknown
    name, for none, and for a corruption without a severity or a baseline error above 0.
    """
    if not accuracies:
        raise ValueError("no accuracies under corruption were given")
    for name, severities in accuracies.items():
        _check_name(name)
        if not severities:
            raise ValueError(f"corruption {name!r} has no accuracy at any severity")
        if baseline_errors is not None and not baseline_errors.get(name, 0) > 0:
            raise ValueError(f"the baseline has no error above 0 under corruption {name!r}")
    by_name = {name: float(np.mean(list(each.values()))) for name, each in accuracies.items()}
    levels = sorted({level for each in accuracies.values() for level in each})
    by_severity = {
        level: float(np.mean([each[level] for each in accuracies.values() if level in each])) for level in levels
    }
    mean = float(np.mean(list(by_name.values())))
    errors = None
    if baseline_errors is not None:
        errors = {name: (1 - accuracy) / baseline_errors[name] for name, accuracy in by_name.items()}
    return RobustnessResult(
        mean_accuracy=mean,
        relative_drop=1 - mean / clean_accuracy if clean_accuracy > 0 else float("nan"),
        by_name=by_name,
        by_severity=by_severity,
        corruption_errors=errors,
        mce=None if errors is None else float(np.mean(list(errors.values()))),
    )
