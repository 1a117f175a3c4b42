"""ConvNeXt with DINOv3's readout: the pooled map takes the place of a CLS token.

Parameter names are those of the official DINOv3 files. Source: Liu et al. 2022; readout: Siméoni et al. 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.architectures import ConvNeXtConfig
from training.models.draws import StepDraws
from training.models.features import Features
from training.models.recompute import run_again


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """x + gamma * W2 gelu(W1 LN(depthwise 7x7 of x)), on a subset of the images in training."""

    def __init__(self, config: ConvNeXtConfig, dim: int, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.drop_path = config.drop_path_rates[layer]
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor, draws: StepDraws | None = None, group: int = 0) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W). In training, ``draws`` decides which images keep the branch."""
        if self.training and draws is not None and self.drop_path > 0:
            rows, factor = draws.kept(self.drop_path, self.layer, "block", group)
            rows = rows.to(x.device)
            update = self._branch(x.index_select(0, rows)) * factor
            return x.index_add(0, rows, update.to(x.dtype))
        return x + self._branch(x)

    def _branch(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return (self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """The backbone. Build it with :func:`training.models.build.build_backbone`, which also initialises the weights."""

    def __init__(self, config: ConvNeXtConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute: Literal["none", "selective", "full"] = "none"
        self.prefix = 1
        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()
        layer = 0
        for stage, (depth, dim) in enumerate(zip(config.depths, config.dims, strict=True)):
            if stage == 0:
                stem = nn.Conv2d(config.in_channels, dim, 4, stride=4)
                self.downsample_layers.append(nn.Sequential(stem, ChannelNorm(dim, eps=config.norm_eps)))
            else:
                before = config.dims[stage - 1]
                halve = nn.Conv2d(before, dim, 2, stride=2)
                self.downsample_layers.append(nn.Sequential(ChannelNorm(before, eps=config.norm_eps), halve))
            self.stages.append(nn.ModuleList(ConvNeXtBlock(config, dim, layer + block) for block in range(depth)))
            layer += depth
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter, drawing from ``generator`` only."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                inputs = module.weight[0].numel()
                std = inputs**-0.5 if self.config.init == "fan_in" else 0.02
                nn.init.trunc_normal_(module.weight, std=std, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, ConvNeXtBlock):
                nn.init.constant_(module.gamma, self.config.layer_scale)

    def forward(
        self, pixels: Tensor, masks: Tensor | None = None, *, draws: StepDraws | None = None, group: int = 0
    ) -> Features:
        """Features of ``pixels`` (B, C, H, W). ``masks`` is accepted and ignored: a convolution sees all pixels.

        N = (H / stride) * (W / stride) with ``config.stride``, 32 for four stages.
        """
        x = pixels.contiguous(memory_format=torch.channels_last)
        for stage in range(len(self.stages)):
            x = self._stage(stage, x, draws, group)
        return self._readout(x, norm=True)

    def intermediate_layers(self, pixels: Tensor, layers: int | Sequence[int], *, norm: bool = True) -> list[Features]:
        """Outputs of the last ``layers`` stages, or of the stages numbered in ``layers`` from 0, in ascending order.

        A stage has its own width and grid: those of stage s are 4 * 2**s pixels apart. With ``norm`` the final norm is
        applied to the last stage, the only one that it fits; the entries of earlier stages are raw, as all are without
        it.
        """
        count = len(self.stages)
        wanted = set(range(count - layers, count) if isinstance(layers, int) else layers)
        if not wanted or min(wanted) < 0 or max(wanted) >= count:
            raise ValueError(f"layers {layers} of a network of {count} stages")
        x = pixels.contiguous(memory_format=torch.channels_last)
        features = []
        for stage in range(max(wanted) + 1):
            x = self._stage(stage, x, None, 0)
            if stage in wanted:
                features.append(self._readout(x, norm=norm and stage == count - 1))
        return features

    def _stage(self, stage: int, x: Tensor, draws: StepDraws | None, group: int) -> Tensor:
        x = self.downsample_layers[stage](x)
        for block in cast(nn.ModuleList, self.stages[stage]):
            if self.recompute != "none" and self.training and torch.is_grad_enabled():
                x = run_again(block, self.recompute, x, draws, group)
            else:
                x = block(x, draws, group)
        return x

    def _readout(self, x: Tensor, *, norm: bool) -> Features:
        tokens = torch.cat((x.mean(dim=(-2, -1)).unsqueeze(1), x.flatten(2).transpose(1, 2)), dim=1)
        normed = self.norm(tokens) if norm else tokens
        return Features(cls=normed[:, 0], registers=normed[:, 1:1], patches=normed[:, 1:], prenorm=tokens)

    def forward_crops(
        self,
        crops: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None = None,
        *,
        draws: StepDraws | None = None,
        local_group: int | None = 1,
    ) -> list[Features]:
        """Features of each element of ``crops``, one after the other; ``masks`` and ``local_group`` change nothing."""
        return [self(pixels, draws=draws, group=group) for group, pixels in enumerate(crops)]
