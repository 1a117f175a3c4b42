"""How healthy features are, whatever they are used for: rank, spread over the sphere, spectrum, norms.

Each measure shows one way in which self-supervised features go wrong: collapse to a point (mean cosine, uniformity), to
few dimensions (rank, spectrum, dead dimensions; Jing et al. 2022), and single patches that the network uses as scratch
space (norm outliers; Darcet et al. 2024). None of them says that features are good: noise is healthy too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.probes.features import normalise_rows
from training.probes.label_free import feature_rank

DEAD = 1e-6
"""A dimension is dead where its variance is below this share of the largest one."""
OUTLIER = 3.0
"""A patch is an outlier where its norm is above this multiple of the median norm."""
_CHUNK = 1024


def uniformity(features: np.ndarray, t: float = 2.0) -> float:
    """log of the mean of exp(-t |x - y|^2) over pairs of different rows of L2-normalised ``features`` (N, D), N > 1.

    The uniformity loss (Wang and Isola 2020, equation 3, with their t = 2): 0 where all rows are alike, its least
    expected value where they are spread evenly over the sphere (about -3.5 for D = 20, -4 as D grows). In float64, over
    all N (N - 1) / 2 pairs.
    """
    x = normalise_rows(features).astype(np.float64)
    squares = (x * x).sum(1)
    total = 0.0
    for start in range(0, len(x), _CHUNK):
        stop = min(start + _CHUNK, len(x))
        kernel = x[start:stop] @ x[start:].T
        kernel *= 2
        kernel -= squares[start:stop, None]
        kernel -= squares[start:]
        # rounding must not make a distance negative
        np.exp(np.minimum(t * kernel, 0, out=kernel), out=kernel)
        # the square in front holds each pair twice, and rows with themselves
        square = kernel[:, : stop - start]
        total += float(kernel[:, stop - start :].sum() + (square.sum() - square.trace()) / 2)
    return float(np.log(total / (len(x) * (len(x) - 1) / 2)))


def mean_cosine(features: np.ndarray) -> float:
    """Mean cosine of pairs of different rows of ``features`` (N, D), N > 1: the anisotropy of Ethayarajh 2019.

    0 where directions cancel out, 1 where all rows point the same way. With unit rows the sum over ordered pairs is
    |sum of rows|^2 - N, so all pairs count, at the cost of one sum.
    """
    x = normalise_rows(features).astype(np.float64)
    total = (x.sum(0) ** 2).sum() - (x * x).sum()
    return float(total / (len(x) * (len(x) - 1)))


def spectrum(features: np.ndarray) -> np.ndarray:
    """(D,) shares of the variance of ``features`` (N, D) along its principal axes, largest first; they sum to 1.

    Eigenvalues of the covariance over their sum, of the features as they are (centred, not normalised). Zeros where the
    features are constant to within float32 noise (variance below 1e-12 of the mean square).
    """
    x = np.asarray(features, np.float64)
    centred = x - x.mean(0)
    if (centred**2).sum() <= 1e-12 * (x**2).sum():
        return np.zeros(x.shape[1])
    values = np.maximum(np.linalg.eigvalsh(centred.T @ centred)[::-1], 0)
    return values / values.sum()


def dimensions_holding(shares: np.ndarray, part: float) -> int:
    """The number of leading axes whose ``shares`` (:func:`spectrum`) sum to ``part``; 0 where there is no variance."""
    if not shares.sum() > 0:
        return 0
    return int(np.searchsorted(np.cumsum(shares), part - 1e-9) + 1)


def dead_dimensions(features: np.ndarray) -> int:
    """Dimensions of ``features`` (N, D) with a variance below :data:`DEAD` of the largest; all D if none varies."""
    variance = np.asarray(features, np.float64).var(0)
    return int(((variance < DEAD * variance.max()) | (variance == 0)).sum())


def outlier_share(norms: np.ndarray) -> float:
    """Share of ``norms`` above :data:`OUTLIER` times their median.

    The artefacts of large networks without registers (Darcet et al. 2024, section 2.1, "outliers" of about ten times
    the usual norm, some 2 % of the patches of DINOv2 ViT-g). That paper cuts at a fixed norm of 150, read off that
    network's histogram; a multiple of the median serves networks of any scale. A final LayerNorm hides them: measure
    features before it where that is the question.
    """
    norms = np.asarray(norms, np.float64)
    return float((norms > OUTLIER * np.median(norms)).mean())


@dataclass(frozen=True)
class HealthResult:
    """The health of the embeddings of N images with D dimensions, and of their patch features where given."""

    rank: float
    """RankMe (Garrido et al. 2023): 1 to min(N, D); see :func:`label_free.feature_rank`."""
    uniformity: float
    """See :func:`uniformity`: 0 collapsed, about -4 spread out."""
    mean_cosine: float
    """See :func:`mean_cosine`: 1 collapsed, 0 spread out."""
    spectrum: np.ndarray
    """(D,) shares of the variance, largest first."""
    dimensions_90: int
    """Principal axes that hold 90 per cent of the variance."""
    dimensions_99: int
    """Principal axes that hold 99 per cent of the variance."""
    dead: int
    """Dimensions that hardly vary; see :func:`dead_dimensions`."""
    norm_mean: float
    """Mean L2 norm of the embeddings."""
    norm_std: float
    """Standard deviation of that norm."""
    patch_norm_median: float | None = None
    """Median L2 norm of the patch features of all images."""
    patch_norm_max: float | None = None
    """Largest of them."""
    patch_outliers: float | None = None
    """Share of patches of outlying norm; see :func:`outlier_share`."""

    def measures(self) -> dict[str, float]:
        """Every figure but the spectrum itself, by name; those of patches where they were given."""
        named = {name: value for name, value in vars(self).items() if name != "spectrum" and value is not None}
        return {name: float(value) for name, value in named.items()}


def health(cls: np.ndarray, patches: np.ndarray | None = None) -> HealthResult:
    """The health of image embeddings ``cls`` (N, D), N > 1, and of patch features (N, P, D), if any.

    Embeddings are as the network gives them; rank, uniformity and mean cosine normalise them. Rank and spectrum are
    bounded by N: compare networks on the same images, several times D of them. Raises :class:`ValueError` for other
    shapes, fewer than two rows or values that are not finite.
    """
    cls = np.asarray(cls)
    if cls.ndim != 2 or len(cls) < 2:
        raise ValueError(f"embeddings have shape {cls.shape}, not (N, D) with two rows or more")
    if not np.isfinite(cls).all():
        raise ValueError("embeddings hold values that are not finite")
    shares = spectrum(cls)
    norms = np.linalg.norm(cls.astype(np.float64), axis=1)
    median = largest = outliers = None
    if patches is not None:
        if patches.ndim != 3 or not patches.size:
            raise ValueError(f"patch features have shape {patches.shape}, not (N, P, D)")
        # image by image: patch features are large
        patch_norms = np.stack([np.linalg.norm(image.astype(np.float64), axis=1) for image in patches])
        if not np.isfinite(patch_norms).all():
            raise ValueError("patch features hold values that are not finite")
        median, largest = float(np.median(patch_norms)), float(patch_norms.max())
        outliers = outlier_share(patch_norms)
    return HealthResult(
        rank=feature_rank(cls),
        uniformity=uniformity(cls),
        mean_cosine=mean_cosine(cls),
        spectrum=shares,
        dimensions_90=dimensions_holding(shares, 0.9),
        dimensions_99=dimensions_holding(shares, 0.99),
        dead=dead_dimensions(cls),
        norm_mean=float(norms.mean()),
        norm_std=float(norms.std()),
        patch_norm_median=median,
        patch_norm_max=largest,
        patch_outliers=outliers,
    )
