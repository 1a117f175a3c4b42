"""Third look at pairs that a thumbnail cannot settle: aligned at 128 pixels, do they differ in a letter or a thin line?

One image of a pair is relit to the other (gain and offset, clipped where the other is) and the two are compared after
their slow changes are taken out, with a tolerance of one pixel. What is left counts by its size against the contrast
around it. A copy that was re-encoded, scaled, brightened or cropped leaves almost nothing. A watermark leaves marks all
over the picture that are all brighter, or all darker; another text, pose or curve leaves marks of both kinds, or in
one place.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from components.curation import alignment
from components.curation.blocks import by_blocks

SIDE = 128
"""Side of a close-up: the whole image squeezed to a square."""
BLOCK = 32
"""Pairs worked on at a time."""
POINTS, ITERATIONS, SMOOTH = 40, 6, 2.0
"""Points along each axis, steps and blur (pixels) of the last refinement of an alignment."""
CELLS = 16
"""Cells along each axis in which differences are measured, every half cell."""
FIELDS = 4
"""Fields along each axis in which marks are looked for."""
MARK = 0.3
"""Difference of a cell from which it holds a mark."""
CONTRAST = 0.4
"""Contrast (of an image of standard deviation 1) that is added to that of a cell: what is faint counts less."""
STEEPEST = 3.0
"""Largest gain, either way, that is tried."""
OUTLIER = 0.06
"""Difference (of the full scale) from which a pixel counts less when the gain is found."""
TINTED = 8.0
"""Root mean square of colour (red and blue less luminance, levels) from which an image has colour to compare."""
TINT_OUTLIER = 10.0
"""Difference in colour (levels) from which a pixel counts less when its gain is found."""


@dataclass(frozen=True)
class Difference:
    """What is left between the images of pairs, each (m,) float64.

    ``largest``: root mean square of the worst cell's difference over its contrast plus ``CONTRAST``. ``spread``: share
    of the 16 fields of the picture that hold a mark. ``one_sided``: 1 where all that differs is brighter in the same
    one of the two images, 0 where as much is darker. ``gain``: contrast of the template over that of the source.
    ``tint``: mean difference in colour of the worst cell (levels), after the colour of one image was brought to the
    saturation of the other; ``tint_gain``: that of the template over that of the source. 0 and 1 where one is grey.
    """

    largest: np.ndarray
    spread: np.ndarray
    one_sided: np.ndarray
    gain: np.ndarray
    tint: np.ndarray
    tint_gain: np.ndarray


_FIELDS = len(fields(Difference))


def take(pixels: np.ndarray) -> np.ndarray:
    """The close-up (128, 128, 3) uint8 of decoded ``pixels`` (H, W, 3) uint8 RGB."""
    from PIL import Image

    method = Image.Resampling.BOX if min(pixels.shape[:2]) >= SIDE else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), method))


def differences(
    pictures: np.ndarray,
    sizes: np.ndarray,
    source: np.ndarray,
    template: np.ndarray,
    mirrored: np.ndarray,
    maps: np.ndarray,
    threads: int | None = None,
) -> Difference:
    """Compare m pairs of close-ups ``pictures`` (k, 128, 128, 3) uint8 of images of ``sizes`` (k, 2) in pixels, aligned
    by ``maps`` (m, 2, 3) from template to source (see :mod:`alignment`). Images of less than 64 x 64 pixels are
    compared at 64."""

    def work(span: slice) -> np.ndarray:
        used, place = np.unique(np.concatenate([source[span], template[span]]), return_inverse=True)
        images, tints = _light_and_colour(pictures[used])
        first, second = place[: span.stop - span.start], place[span.stop - span.start :]
        small = np.minimum(sizes[used[first]].prod(axis=1), sizes[used[second]].prod(axis=1)) <= (SIDE // 2) ** 2
        found = np.zeros((len(first), _FIELDS))
        for side, chosen in ((SIDE // 2, np.flatnonzero(small)), (SIDE, np.flatnonzero(~small))):
            if len(chosen):
                pairs = first[chosen], second[chosen], mirrored[span][chosen], maps[span][chosen]
                seen = (_halved(images), _halved(tints)) if side < SIDE else (images, tints)
                found[chosen] = _compare(*seen, *pairs)
        return found

    if not len(source):
        return Difference(*np.zeros((_FIELDS, 0)))
    return Difference(*by_blocks(work, len(source), BLOCK, threads).T)


def _light_and_colour(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Luminance (k, 128, 128) of 0..1, and red and blue less luminance (2, k, 128, 128) in levels; float32."""
    red, green, blue = np.moveaxis(pictures.astype(np.uint32), 3, 0)
    light = ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(np.float32)  # as Pillow rounds it
    return light / 255, np.stack([red - light, blue - light]).astype(np.float32)


def _halved(images: np.ndarray) -> np.ndarray:
    *lead, side, _ = images.shape
    return np.asarray(images.reshape(*lead, side // 2, 2, side // 2, 2).mean(axis=(-3, -1)))


def _compare(
    images: np.ndarray,
    tints: np.ndarray,
    source: np.ndarray,
    template: np.ndarray,
    mirrored: np.ndarray,
    maps: np.ndarray,
) -> np.ndarray:
    """(m, 6) fields of :class:`Difference`."""
    import cv2

    side = images.shape[1]
    smooth = alignment.blur(images, SMOOTH * side / SIDE)
    slopes = alignment.gradients(smooth)
    maps = alignment.refine(smooth, slopes, source, template, mirrored, maps, POINTS, ITERATIONS)
    mine, other, inside = alignment.laid_on(alignment.blur(images, 0.7), source, template, mirrored, maps)
    laid = [
        alignment.laid_on(alignment.blur(tint, 1.5 * side / SIDE), source, template, mirrored, maps) for tint in tints
    ]
    tint_of = np.stack([[mine, other] for mine, other, _ in laid], axis=2)  # (2 images, m, 2 channels, side, side)
    rim = np.ones((5, 5), np.uint8)
    found = []
    for one, two, seen, its, others in zip(mine, other, inside, *tint_of, strict=True):
        seen = cv2.erode(seen, rim, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        ways = [_difference(*_relit(one, two, seen), seen, 1.0), _difference(*_relit(two, one, seen), seen, -1.0)]
        found.append((*min(ways)[1:], *_tint_difference(its, others, seen)))
    return np.array(found)


def _tint_difference(one: np.ndarray, two: np.ndarray, seen: np.ndarray) -> tuple[float, float]:
    """(``tint``, ``tint_gain``) of :class:`Difference` of colours (2, side, side), the template's second."""
    import cv2

    total = seen.sum() + 1e-6
    if min(np.sqrt((seen * colour**2).sum() / (2 * total)) for colour in (one, two)) < TINTED:
        return 0.0, 1.0
    weights = seen
    for _ in range(4):
        gain = float((weights * one * two).sum() / ((weights * one**2).sum() + 1e-3))
        difference = np.sqrt(((gain * one - two) ** 2).sum(axis=0))
        weights = seen / (1 + (difference / TINT_OUTLIER) ** 2)
    cell = (len(seen) // CELLS,) * 2
    covered = np.maximum(cv2.blur(seen, cell), 0.5)
    return float((cv2.blur((difference * seen).astype(np.float32), cell) / covered).max()), gain


def _relit(explaining: np.ndarray, shown: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """``explaining`` at the gain and offset that bring most of it to ``shown``, clipped to 0..1; ``shown``; the gain.

    Least squares with weights that fall with the difference; pixels at which ``shown`` is clipped do not count.
    """
    clear = seen * ((shown > 0.02) & (shown < 0.98))
    clear = clear if clear.sum() >= 0.1 * seen.sum() else seen
    weights = clear
    for _ in range(4):
        total = weights.sum() + 1e-6
        x, y = explaining - (weights * explaining).sum() / total, shown - (weights * shown).sum() / total
        gain = float(np.clip((weights * x * y).sum() / ((weights * x**2).sum() + 1e-4), 1 / STEEPEST, STEEPEST))
        offset = (weights * (shown - gain * explaining)).sum() / total
        relit = np.clip(gain * explaining + offset, 0, 1)
        weights = clear / (1 + ((relit - shown) / OUTLIER) ** 2)
    return relit, shown, gain


def _difference(
    relit: np.ndarray, shown: np.ndarray, gain: float, seen: np.ndarray, way: float
) -> tuple[float, float, float, float, float]:
    """(root mean square of all differences, then the fields of :class:`Difference`)."""
    import cv2

    cell = len(shown) // CELLS
    total = seen.sum() + 1e-6
    mean = (seen * shown).sum() / total
    deviation = np.sqrt((seen * (shown - mean) ** 2).sum() / total) + 0.02
    one, two = (relit - mean) / deviation, (shown - mean) / deviation
    sign = np.sign(two - one)
    energy = (_beyond(one, two) * seen) ** 2
    one_sided = abs((energy * sign).sum()) / (energy.sum() + 1e-9)

    def mean_of(values: np.ndarray, width: int = cell) -> np.ndarray:
        return np.asarray(cv2.blur(values, (width, width)))

    variance = np.maximum(mean_of(one**2) - mean_of(one) ** 2, mean_of(two**2) - mean_of(two) ** 2)
    fine = _beyond(one - mean_of(one, 2 * cell), two - mean_of(two, 2 * cell)) * seen
    strength = np.sqrt(np.maximum(mean_of(fine**2), 0)) / (np.sqrt(np.maximum(variance, 0)) + CONTRAST)
    parts = strength.reshape(FIELDS, len(shown) // FIELDS, FIELDS, -1).max(axis=(1, 3))
    return (
        float(np.sqrt((fine**2).sum() / total)),
        float(strength[cell // 2 :: cell // 2, cell // 2 :: cell // 2].max()),
        float((parts > MARK).mean()),
        float(one_sided),
        gain**way,
    )


def _beyond(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """By how much each pixel of one image is outside the range of the 3 x 3 pixels of the other: the larger of both."""
    import cv2

    near = np.ones((3, 3), np.uint8)
    outside = [
        np.maximum(values - cv2.dilate(around, near), cv2.erode(around, near) - values)
        for values, around in ((one, two), (two, one))
    ]
    return np.maximum(0, np.maximum(*outside))
