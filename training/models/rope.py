"""Axial rotary position embedding of patch tokens. Source: Siméoni et al. 2025 (DINOv3), section 3.2."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from training.models.architectures import ViTConfig
from training.models.draws import StepDraws


class AxialRope(nn.Module):
    """Angles 2 pi u / p for the coordinates u in (-1, 1) of patch centres, rows before columns.

    Periods p_j = base^(j / F), j = 0 ... F - 1, with F a quarter of a head's width, are a persistent buffer
    ``periods``.
    """

    periods: Tensor

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.base = config.rope_base
        self.rescale = config.rope_rescale
        self.shift = config.rope_shift
        self.jitter = config.rope_jitter
        self.per_block = config.rope_jitter_scope == "block"
        self.register_buffer("periods", torch.empty(config.dim // config.heads // 4))

    def init_weights(self) -> None:
        """Fill the periods."""
        self.periods.copy_(_periods(self.base, self.periods.numel()))

    def forward(
        self, height: int, width: int, prefix: int, draws: StepDraws | None = None, layer: int = 0, group: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Cosine and sine (prefix + height * width, d_h / 2), float32; the ``prefix`` first tokens get angle zero.

        Jitter (in training with ``draws`` only): shift per axis, factor per axis, then one factor for both axes.
        """
        device = self.periods.device
        rows = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        columns = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        rows, columns = 2 * rows - 1, 2 * columns - 1
        if self.training and draws is not None:
            rows, columns = self._jittered(rows, columns, draws, layer if self.per_block else -1, group)
        frequencies = 2 * math.pi / self.periods.float()
        row_angles = (rows[:, None] * frequencies)[:, None, :].expand(height, width, -1)
        column_angles = (columns[:, None] * frequencies)[None, :, :].expand(height, width, -1)
        angles = torch.cat((row_angles, column_angles), dim=-1).flatten(0, 1)
        angles = torch.cat((angles.new_zeros(prefix, angles.shape[-1]), angles))
        return angles.cos(), angles.sin()

    @property
    def drawn(self) -> bool:
        """Whether training draws anything."""
        return self.rescale is not None or self.shift is not None or self.jitter is not None

    def _jittered(
        self, rows: Tensor, columns: Tensor, draws: StepDraws, layer: int, group: int
    ) -> tuple[Tensor, Tensor]:
        if not self.drawn:
            return rows, columns
        shift_row, shift_column, row, column, both = (
            2 * value - 1 for value in draws.uniform("rope", layer, group, 5)
        )  # each in [-1, 1)
        if self.shift is not None:
            rows, columns = rows + self.shift * shift_row, columns + self.shift * shift_column
        if self.jitter is not None:
            rows, columns = rows * self.jitter**row, columns * self.jitter**column
        if self.rescale is not None:
            rows, columns = rows * self.rescale**both, columns * self.rescale**both
        return rows, columns


def rope_periods(config: ViTConfig) -> Tensor:
    """The periods (F,), float32."""
    return _periods(config.rope_base, config.dim // config.heads // 4)


def _periods(base: float, count: int) -> Tensor:
    return (base ** (torch.arange(count, dtype=torch.float64) / count)).float()


class _Rotation(torch.autograd.Function):
    """A rotation, whose backward is the rotation by the opposite angle; neither keeps anything of the tokens' size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        wide = x.to(cosine.dtype)
        first, second = wide.chunk(2, dim=-1)
        turned = torch.empty_like(wide, memory_format=torch.contiguous_format)
        turned_first, turned_second = turned.chunk(2, dim=-1)
        torch.mul(first, cosine, out=turned_first).addcmul_(second, sine, value=-1)
        torch.mul(second, cosine, out=turned_second).addcmul_(first, sine)
        return turned.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _Rotation.apply(outputs[0], cosine, -sine), None, None


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """``x`` (B, N, ..., h, d_h) with dimension m paired with m + d_h / 2 and turned by the token's angle m.

    ``cosine`` and ``sine`` are (N, d_h / 2); the rotation is computed in their dtype and returned in ``x``'s.
    """
    shape = (1, cosine.shape[0], *([1] * (x.dim() - 3)), cosine.shape[1])
    cosine, sine = cosine.view(shape), sine.view(shape)
    if torch.compiler.is_compiling():  # a compiler or exporter fuses the plain form
        first, second = x.to(cosine.dtype).chunk(2, dim=-1)
        return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(x.dtype)
    return _Rotation.apply(x, cosine, sine)
