"""Linear semantic segmentation of frozen patch features (Oquab et al. 2023, section 7.4; Siméoni et al. 2025, 6.1.2).

Head: BatchNorm on the patch features, 1x1 convolution, bilinear upsampling, cross-entropy that leaves 255 out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from foundry.images import decode_image
from training.data.evaluation_set import IGNORE, EvaluationSet, MaskedImage
from training.probes.features import grid_side
from training.probes.outcome import Items

LONGEST_SIDE = 640
"""Pixels of a mask's longer side at most, where one is kept in memory."""
_TRAIN_SCALE = 4
"""While fitting, logits are upsampled to this multiple of the patch grid (or the mask's size, if that is smaller) and
compared with the mask's pixels at those places; scores are always taken at every pixel of the mask."""


@dataclass(frozen=True)
class SegmentationResult:
    """Scores as fractions over all scored test pixels."""

    miou: float
    """Mean over the classes that occur in the test masks of intersection / union."""
    pixel_accuracy: float
    iou: dict[int, float]
    """Of each class that occurs in the test masks."""
    predictions: list[np.ndarray]
    """(H, W) uint8 class of each pixel, for the first test images (as many as ``keep``)."""
    items: Items
    """Intersection and union of each class in each test image; of classes that occur in the test masks."""


def segmentation_probe(
    train: np.ndarray,
    train_masks: Sequence[np.ndarray],
    test: np.ndarray,
    test_masks: Sequence[np.ndarray],
    *,
    classes: int,
    steps: int = 300,
    batch: int = 16,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-3,
    seed: int = 0,
    keep: int = 0,
) -> SegmentationResult:
    """mIoU of a linear head on patch features ``train`` (N, P, D) and ``test`` (M, P, D) of square grids.

    Masks are (H, W) uint8 class indices, 255 not scored, of the extent that the features cover. AdamW (betas 0.9,
    0.999), a tenth of the steps linear warm-up, then cosine to zero. The rate is ten times that of the papers, which
    take 40,000 steps; with BatchNorm in front, a few hundred at this rate reach the same plateau. Equal seeds give
    equal results.
    """
    height = width = grid_side(train.shape[1])
    generator = torch.Generator().manual_seed(seed)
    head = _Head(train.shape[2], classes, generator)
    optimiser = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=weight_decay)
    features = torch.from_numpy(np.asarray(train, np.float32))
    targets = [_sampled(mask, _TRAIN_SCALE * height) for mask in train_masks]
    batch = min(batch, len(features))
    order = torch.empty(0, dtype=torch.long)
    head.train()
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(features), generator=generator)
        chosen, order = order[:batch], order[batch:]
        warm = max(steps // 10, 1)
        progress = max(step - warm, 0) / max(steps - warm, 1)
        factor = (step + 1) / warm if step < warm else 0.5 * (1 + np.cos(np.pi * progress))
        optimiser.param_groups[0]["lr"] = learning_rate * float(factor)
        logits: Tensor = head(_to_map(features[chosen], height, width))
        loss = _loss(logits, [targets[index] for index in chosen.tolist()])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    head.eval()
    return score_masks(_predicted(head, test, test_masks, height, batch), test_masks, classes, keep)


def _predicted(
    head: _Head, test: np.ndarray, masks: Sequence[np.ndarray], side: int, batch: int
) -> Iterator[np.ndarray]:
    """(H, W) uint8 classes of each test image, at the size of its mask."""
    for start in range(0, len(test), batch):
        with torch.inference_mode():
            logits = head(_to_map(torch.from_numpy(test[start : start + batch]).float(), side, side))
            for index, mask in enumerate(masks[start : start + batch]):
                full = _upsample(logits[index : index + 1], mask.shape[:2])
                predicted: np.ndarray = full[0].argmax(0).numpy().astype(np.uint8)
                yield predicted


class _Head(nn.Module):
    def __init__(self, dim: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.classify = nn.Conv2d(dim, classes, 1)
        with torch.no_grad():
            self.classify.weight.normal_(0.0, 0.01, generator=generator)
            assert self.classify.bias is not None
            self.classify.bias.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, classes, h, w)."""
        logits: Tensor = self.classify(self.norm(features))
        return logits


def _to_map(patches: Tensor, height: int, width: int) -> Tensor:
    return patches.transpose(1, 2).reshape(len(patches), -1, height, width)


def _upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _sampled(mask: np.ndarray, side: int) -> Tensor:
    """The mask at the centres of a ``side`` x ``side`` grid (at its own pixels where it is smaller)."""
    height, width = min(mask.shape[0], side), min(mask.shape[1], side)
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(int)
    return torch.from_numpy(mask[np.ix_(rows, columns)].astype(np.int64))


def _loss(logits: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """Mean cross-entropy over the scored pixels of a batch; masks may differ in size."""
    total, count = logits.sum() * 0.0, 0
    for size in sorted({tuple(target.shape) for target in targets}):
        members = [index for index, target in enumerate(targets) if tuple(target.shape) == size]
        truth = torch.stack([targets[index] for index in members])
        up = _upsample(logits[members], (size[0], size[1]))
        total = total + functional.cross_entropy(up, truth, ignore_index=IGNORE, reduction="sum")
        count += int((truth != IGNORE).sum())
    return total / max(count, 1)


def confusion_matrix(predicted: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) counts of pixels: row = class in the mask, column = predicted; 255 in the mask left out."""
    scored = mask != IGNORE
    cells = mask[scored].astype(np.int64) * classes + predicted[scored]
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def majority_map(masks: Sequence[np.ndarray], size: tuple[int, int], classes: int) -> np.ndarray:
    """(H, W) uint8 of ``size``: the class that most of the ``masks`` have at each place, the floor of any network."""
    counts = np.zeros((classes, *size), np.int64)
    for mask in masks:
        rows = ((np.arange(size[0]) + 0.5) * mask.shape[0] / size[0]).astype(int)
        columns = ((np.arange(size[1]) + 0.5) * mask.shape[1] / size[1]).astype(int)
        sampled = mask[np.ix_(rows, columns)]
        for label in range(classes):
            counts[label] += sampled == label
    return counts.argmax(0).astype(np.uint8)


def score_masks(
    predictions: Iterable[np.ndarray], masks: Sequence[np.ndarray], classes: int, keep: int = 0
) -> SegmentationResult:
    """Scores of predicted (H, W) classes against masks; the first ``keep`` predictions stay in the result."""
    kept: list[np.ndarray] = []
    parts, truth, right = [], np.zeros(classes, np.int64), 0
    for predicted, mask in zip(predictions, masks, strict=True):
        confusion = confusion_matrix(predicted, mask, classes)
        shared = np.diag(confusion)
        parts.append(np.stack([shared, confusion.sum(1) + confusion.sum(0) - shared], axis=-1))
        truth += confusion.sum(1)
        right += int(shared.sum())
        if len(kept) < keep:
            kept.append(predicted)
    present = np.flatnonzero(truth)
    items = Items(np.stack(parts)[:, present].astype(np.float64))
    sums = items.values.sum(0)
    iou = {int(label): float(shared / union) for label, (shared, union) in zip(present, sums, strict=True)}
    miou = float(np.mean(list(iou.values()))) if iou else 0.0
    return SegmentationResult(miou, right / max(int(truth.sum()), 1), iou, kept, items)


def scaled_mask(evaluation: EvaluationSet, row: MaskedImage) -> np.ndarray:
    """The mask of an image at its own size, or every n-th pixel of it: (H, W) uint8, at most :data:`LONGEST_SIDE`."""
    scene = decode_image(evaluation.read(row.name))
    mask = evaluation.read_mask(row, (scene.shape[0], scene.shape[1]))
    every = -(-max(mask.shape) // LONGEST_SIDE)
    return np.ascontiguousarray(mask[every // 2 :: every, every // 2 :: every])
