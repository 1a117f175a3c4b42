"""Monocular depth from frozen patch features: a linear head over depth bins (Oquab et al. 2023, section 7.4).

Head: BatchNorm on the patch features, 1x1 convolution to one logit a bin, bilinear upsampling. The bins' centres c are
uniform over the range (Bhat et al. 2021 for depth as a weighted mean of bins); with weights w = relu(logit) + 0.1 the
depth is sum(w c) / sum(w). Loss and measures follow Eigen et al. 2014. The DINO papers also turn, crop, colour and flip
the images; features are extracted once here, so nothing of that is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from foundry.errors import UserError
from training.probes.features import grid_side
from training.probes.outcome import Items

NEAREST = 0.001
"""Metres: the near end of the papers' range."""
FARTHEST = 10.0
"""Metres: the far end for rooms (NYU); 80 for streets (KITTI)."""
_TRAIN_SCALE = 1
"""While fitting, logits are upsampled to this multiple of the patch grid (or the map's size, if that is smaller) and
compared with the depth at those places."""
_TEST_SCALE = 4
"""For a prediction logits are upsampled to this multiple, as in the paper, and the depth from there to every pixel."""
_SHIFT = 0.001
"""Metres added before the logarithm of the loss."""
_ITEMS = ("rmse", "abs_rel", "delta1")


@dataclass(frozen=True)
class DepthResult:
    """Measures of predicted depth maps: each is taken in every image and averaged over the images."""

    measures: dict[str, float]
    """See :func:`depth_measures`."""
    items: dict[str, Items]
    """Of rmse, abs_rel and delta1: a row a test image (empty where nothing of the image is measured)."""
    predictions: list[np.ndarray]
    """(H, W) float32 metres, for the first test images (as many as ``keep``)."""


def depth_probe(
    train: np.ndarray,
    train_depths: Sequence[np.ndarray],
    test: np.ndarray,
    test_depths: Sequence[np.ndarray],
    *,
    nearest: float = NEAREST,
    farthest: float = FARTHEST,
    bins: int = 256,
    steps: int = 300,
    batch: int = 16,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-4,
    seed: int = 0,
    keep: int = 0,
) -> DepthResult:
    """Depth by a linear head on patch features ``train`` (N, P, D) and ``test`` (M, P, D) float32 of square grids.

    Depth maps are (H, W) float32 metres of the extent that the features cover, 0 or not a number where not measured;
    what lies outside ``nearest`` to ``farthest`` counts as not measured. AdamW (betas 0.9, 0.99), a tenth of the steps
    linear warm-up, then cosine to zero. In that tenth the loss leaves the variance out, so that the scale is found
    first (the papers: 100 of 38,400 steps, which of a few hundred would be less than one). The rate is ten times the
    papers' highest, since there are a hundred times fewer steps. Equal seeds give equal results. Raises
    :class:`UserError` where no pixel of a split is measured in the range.
    """
    if not 0 < nearest < farthest:
        raise UserError(f"a depth range of {nearest:g} to {farthest:g} m is empty; give 0 < nearest < farthest")
    if len(train) != len(train_depths) or len(test) != len(test_depths):
        raise ValueError("there must be one depth map for each row of features")
    height = width = grid_side(train.shape[1])
    targets = [_sampled(depth, _TRAIN_SCALE * height) for depth in train_depths]
    known = [torch.from_numpy(_measured(target.numpy(), nearest, farthest)) for target in targets]
    if not any(bool(part.any()) for part in known):
        raise _nothing_measured("train", nearest, farthest)
    generator = torch.Generator().manual_seed(seed)
    head = _Head(train.shape[2], nearest, farthest, bins, generator)
    optimiser = torch.optim.AdamW(head.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    features = torch.from_numpy(np.asarray(train, np.float32))
    batch = min(batch, len(features))
    order = torch.empty(0, dtype=torch.long)
    warm = max(steps // 10, 1)
    head.train()
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(features), generator=generator)
        chosen, order = order[:batch], order[batch:]
        progress = max(step - warm, 0) / max(steps - warm, 1)
        factor = (step + 1) / warm if step < warm else 0.5 * (1 + np.cos(np.pi * progress))
        optimiser.param_groups[0]["lr"] = learning_rate * float(factor)
        members = chosen.tolist()
        errors = _log_errors(
            head, _to_map(features[chosen], height, width), [targets[i] for i in members], [known[i] for i in members]
        )
        if not len(errors):
            continue
        optimiser.zero_grad()
        sig_loss(errors, variance=step >= warm).backward()
        optimiser.step()
    head.eval()
    predictions = []
    with torch.inference_mode():
        for patches, depth in zip(test, test_depths, strict=True):
            logits = head(_to_map(torch.from_numpy(np.asarray(patches, np.float32))[None], height, width))
            coarse = tuple(min(side, _TEST_SCALE * height) for side in depth.shape)
            full = _upsample(head.depth(_upsample(logits, coarse))[:, None], depth.shape)[0, 0]
            predictions.append(full.clamp(nearest, farthest).numpy())
    return score_depths(predictions, test_depths, nearest=nearest, farthest=farthest, keep=keep)


def sig_loss(errors: Tensor, *, variance: bool = True) -> Tensor:
    """sqrt(var(g) + 0.15 mean(g)^2) of the log errors g (K,); without ``variance`` only the second term.

    The scale-invariant loss of Eigen et al. 2014 with the weights of Bhat et al. 2021. () of the errors' dtype.
    """
    square = 0.15 * errors.mean().square()
    if variance:
        square = square + errors.var(correction=0)
    return (square + 1e-12).sqrt()  # the slope of a root at zero is not finite


def score_depths(
    predictions: Sequence[np.ndarray],
    depths: Sequence[np.ndarray],
    *,
    nearest: float = NEAREST,
    farthest: float = FARTHEST,
    keep: int = 0,
) -> DepthResult:
    """Measures of ``predictions`` (H, W) metres against ``depths`` (H, W), each image by itself, then their plain mean.

    The usual way of the NYU and KITTI tables; an image in which nothing is measured does not count. Raises
    :class:`UserError` where no image has a measured pixel.
    """
    rows = [
        depth_measures(prediction, depth, nearest=nearest, farthest=farthest)
        for prediction, depth in zip(predictions, depths, strict=True)
    ]
    found = [row for row in rows if row]
    if not found:
        raise _nothing_measured("test", nearest, farthest)
    measures = {name: float(np.mean([row[name] for row in found])) for name in found[0]}
    items = {
        name: Items(np.array([[[row[name], 1.0] if row else [0.0, 0.0]] for row in rows], np.float64))
        for name in _ITEMS
    }
    return DepthResult(measures, items, [np.asarray(part, np.float32) for part in predictions[:keep]])


def depth_measures(
    prediction: np.ndarray, depth: np.ndarray, *, nearest: float = NEAREST, farthest: float = FARTHEST
) -> dict[str, float]:
    """Measures of one prediction in metres over all measured pixels of ``depth`` (any shape, the same for both).

    Prediction p is clipped to the range; t is the truth and g = ln p - ln t. ``delta1``, ``delta2``, ``delta3``: share
    of max(p/t, t/p) < 1.25, 1.25^2, 1.25^3. ``abs_rel``: mean |p - t| / t. ``sq_rel``: mean (p - t)^2 / t, metres.
    ``rmse``, ``mae``: metres. ``log10``: mean |log10 p - log10 t|. ``rmse_log``: root of mean g^2. ``silog``: 100 times
    the standard deviation of g. All in float64 (Eigen et al. 2014, section 4; Bhat et al. 2021, section 5). Empty where
    nothing is measured.
    """
    known = _measured(depth, nearest, farthest)
    if not known.any():
        return {}
    truth = np.asarray(depth)[known].astype(np.float64)
    said = np.clip(np.asarray(prediction)[known].astype(np.float64), nearest, farthest)
    error, ratio = said - truth, np.maximum(said / truth, truth / said)
    log_error = np.log(said) - np.log(truth)
    return {
        **{f"delta{power}": float(np.mean(ratio < 1.25**power)) for power in (1, 2, 3)},
        "abs_rel": float(np.mean(np.abs(error) / truth)),
        "sq_rel": float(np.mean(error**2 / truth)),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "log10": float(np.mean(np.abs(log_error)) / np.log(10.0)),
        "rmse_log": float(np.sqrt(np.mean(log_error**2))),
        "silog": float(100.0 * np.std(log_error)),
        "mae": float(np.mean(np.abs(error))),
    }


def mean_depth_map(train_depths: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The floor that a probe should beat: (H, W) float32 mean depth at each place of maps of any size.

    Maps are compared at the centres of ``size`` pixels; a place at which nothing was ever measured gets the mean of
    the others. Raises :class:`UserError` where nothing is measured at all.
    """
    total, count = np.zeros(size), np.zeros(size)
    for depth in train_depths:
        placed = depth if depth.shape == size else _at_centres(depth, size)
        known = _measured(placed, 0.0, np.inf)
        total += np.where(known, placed, 0.0)
        count += known
    if not count.any():
        raise UserError("no pixel of the train depth maps is measured; give metres, 0 where not measured")
    return np.where(count > 0, total / np.maximum(count, 1), total.sum() / count.sum()).astype(np.float32)


class _Head(nn.Module):
    centres: Tensor

    def __init__(self, dim: int, nearest: float, farthest: float, bins: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.weigh = nn.Conv2d(dim, bins, 1)
        self.register_buffer("centres", torch.linspace(nearest, farthest, bins))
        with torch.no_grad():
            self.weigh.weight.normal_(0.0, 0.01, generator=generator)
            assert self.weigh.bias is not None
            self.weigh.bias.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, bins, h, w)."""
        logits: Tensor = self.weigh(self.norm(features))
        return logits

    def depth(self, logits: Tensor) -> Tensor:
        """(B, bins, h, w) -> (B, h, w) metres."""
        weights = logits.relu() + 0.1
        return torch.einsum("bkhw,k->bhw", weights, self.centres) / weights.sum(1)


def _to_map(patches: Tensor, height: int, width: int) -> Tensor:
    """(B, P, D) -> (B, D, h, w) without moving anything: with channels last upsampling is several times faster."""
    return patches.reshape(len(patches), height, width, -1).permute(0, 3, 1, 2)


def _upsample(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    return functional.interpolate(maps, size=(size[0], size[1]), mode="bilinear", align_corners=False)


def _measured(depth: np.ndarray, nearest: float, farthest: float) -> np.ndarray:
    """Where a depth is finite, above zero and in the range."""
    return np.isfinite(depth) & (depth > 0) & (depth >= nearest) & (depth <= farthest)


def _at_centres(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The map at the centres of ``size`` equal cells; never a mean, which would mix near and far, measured and not."""
    rows = ((np.arange(size[0]) + 0.5) * depth.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * depth.shape[1] / size[1]).astype(int)
    return depth[np.ix_(rows, columns)]


def _sampled(depth: np.ndarray, side: int) -> Tensor:
    """The map at the centres of a ``side`` x ``side`` grid (at its own pixels where it is smaller)."""
    size = min(depth.shape[0], side), min(depth.shape[1], side)
    return torch.from_numpy(_at_centres(depth, size).astype(np.float32))


def _log_errors(head: _Head, features: Tensor, targets: Sequence[Tensor], known: Sequence[Tensor]) -> Tensor:
    """(K,) ln(predicted) - ln(true) of the measured pixels of a batch; maps may differ in size."""
    logits = head(features)
    parts = []
    for size in sorted({tuple(target.shape) for target in targets}):
        members = [index for index, target in enumerate(targets) if tuple(target.shape) == size]
        scored = torch.stack([known[index] for index in members])
        truth = torch.stack([targets[index] for index in members])[scored]
        depth = head.depth(_upsample(logits[members], size))[scored]
        parts.append((depth + _SHIFT).log() - (truth + _SHIFT).log())
    return torch.cat(parts)


def _nothing_measured(split: str, nearest: float, farthest: float) -> UserError:
    return UserError(
        f"no pixel of the {split} depth maps is measured within {nearest:g} to {farthest:g} m; "
        "give metres (0 where not measured), or a range that holds them"
    )
