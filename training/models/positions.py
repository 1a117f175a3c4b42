"""Learned absolute position embedding, resampled to the grid at hand (DINO and DINOv2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.models.architectures import ViTConfig


class LearnedPositions:
    """Bicubic resampling of the patch part of a (1, 1 + M^2, D) embedding, in float32.

    Three published variants: ``offset`` 0.1 without antialiasing (official DINO, and DINOv2 without registers), 0 with
    antialiasing (DINOv2 with registers), 0 without (transformers' Dinov2Model).
    """

    def __init__(self, config: ViTConfig) -> None:
        self.grid = config.position_grid
        self.offset = config.position_offset
        self.antialias = config.position_antialias

    def __call__(self, embedding: Tensor, grid: tuple[int, int]) -> Tensor:
        """The embedding (1, 1 + rows * columns, D) for ``grid`` = (rows, columns)."""
        if grid == (self.grid, self.grid):
            return embedding
        patches = embedding[:, 1:].float().unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        if self.offset:
            factors = [(side + self.offset) / self.grid for side in grid]
            resampled = F.interpolate(patches, scale_factor=factors, mode="bicubic", antialias=self.antialias)
        else:
            resampled = F.interpolate(patches, size=grid, mode="bicubic", antialias=self.antialias)
        if tuple(resampled.shape[-2:]) != tuple(grid):
            raise ValueError(f"positions resampled to {tuple(resampled.shape[-2:])} instead of {grid}")
        return torch.cat((embedding[:, :1], resampled.permute(0, 2, 3, 1).flatten(1, 2).to(embedding.dtype)), dim=1)
