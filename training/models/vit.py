"""Vision Transformer of the three DINO generations, over a list of crop groups at once.

Names of parameters and buffers are those of the official DINOv3 files, so that such a file loads as it is. Shape
letters: B crops, N tokens of a crop (CLS, registers, patches), T tokens of all crops together, D width, h heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from training.models.architectures import ViTConfig
from training.models.blocks import Block, Kept, LayerScale, MaskedKeyBiasLinear, Packing
from training.models.draws import StepDraws
from training.models.features import Features
from training.models.positions import LearnedPositions
from training.models.recompute import run_again
from training.models.rope import AxialRope


class PatchEmbedding(nn.Module):
    """Non-overlapping convolution: pixels (B, C, H, W) -> patch tokens (B, H/P * W/P, D), row by row.

    Sides that are no multiple of P lose the rest, as in DINOv3.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_channels, config.dim, config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D)."""
        return self.proj(pixels).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """The backbone. Build it with :func:`training.models.build.build_backbone`, which also initialises the weights."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute: Literal["none", "selective", "full"] = "none"
        self.prefix = 1 + config.registers
        self.patch_embed = PatchEmbedding(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.dim))
        if config.registers:
            self.storage_tokens = nn.Parameter(torch.empty(1, config.registers, config.dim))
        if config.mask_token:
            self.mask_token = nn.Parameter(torch.empty(1, config.dim))
        if config.position == "rope":
            self.rope_embed = AxialRope(config)
        else:
            self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.position_grid**2, config.dim))
        self.positions = LearnedPositions(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        if config.local_cls_norm:
            self.local_cls_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter and buffer, drawing from ``generator`` only."""
        config = self.config
        bound = 1 / math.sqrt(config.in_channels * config.patch_size**2)
        for parameter in self.patch_embed.proj.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        if config.position == "rope":
            self.rope_embed.init_weights()
            token_std = 0.02
        else:
            nn.init.trunc_normal_(self.pos_embed, std=0.02, generator=generator)
            token_std = 0.02 if config.layer_scale is None else 1e-6
        nn.init.normal_(self.cls_token, std=token_std, generator=generator)
        if config.registers:
            nn.init.normal_(self.storage_tokens, std=token_std, generator=generator)
        if config.mask_token:
            nn.init.zeros_(self.mask_token)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                std = module.in_features**-0.5 if config.init == "fan_in" else 0.02
                nn.init.trunc_normal_(module.weight, std=std, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, MaskedKeyBiasLinear):
                module.init_mask()
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, LayerScale):
                nn.init.constant_(module.gamma, module.initial)

    def forward(self, pixels: Tensor, masks: Tensor | None = None, *, draws: StepDraws | None = None) -> Features:
        """Features of ``pixels`` (B, C, H, W); patches where ``masks`` (B, N, bool) is true become the mask token.

        In training, ``draws`` decides stochastic depth and position jitter; without it neither happens.
        """
        return self.forward_crops([pixels], [masks], draws=draws)[0]

    def forward_crops(
        self,
        crops: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None = None,
        *,
        draws: StepDraws | None = None,
        local_group: int | None = 1,
    ) -> list[Features]:
        """Features of each element of ``crops`` (each (B, C, H, W)) as separate calls would give them, in one pass.

        Attention runs crop by crop, everything else on all tokens together. ``masks`` has one entry per element. In
        training, ``local_group`` names the element whose CLS and register tokens take the local norm, if there is one.
        """
        x_TD, packing, grids = self._tokens(crops, masks)
        keeps: list[dict[str, Kept]] = [{}] * len(self.blocks)
        if self.training and draws is not None:
            keeps = packing.kept(draws, self.config.drop_path_rates, x_TD.device)
        for layer, (block, kept) in enumerate(zip(self.blocks, keeps, strict=True)):
            if layer == 0 or self._rope_is_per_block(draws):
                packing.rope = self._rope(grids, draws, layer)
            x_TD = self._run(block, x_TD, packing, kept)
        return self._readout(x_TD, packing, local_group)

    def intermediate_layers(self, pixels: Tensor, layers: int | Sequence[int], *, norm: bool = True) -> list[Features]:
        """Outputs of the last ``layers`` blocks, or of the blocks numbered in ``layers`` from 0, in ascending order.

        With ``norm`` the final norm is applied to each; otherwise all entries are the raw tokens.
        """
        depth = len(self.blocks)
        wanted = set(range(depth - layers, depth) if isinstance(layers, int) else layers)
        if not wanted or min(wanted) < 0 or max(wanted) >= depth:
            raise ValueError(f"layers {layers} of a network of {depth} blocks")
        x_TD, packing, grids = self._tokens([pixels], None)
        packing.rope = self._rope(grids, None, 0)
        features = []
        for layer, block in enumerate(self.blocks[: max(wanted) + 1]):
            x_TD = block(x_TD, packing)
            if layer in wanted:
                features.append(self._readout(x_TD, packing, None, norm=norm)[0])
        return features

    def attention_map(self, pixels: Tensor, layer: int = -1) -> Tensor:
        """Attention (B, h, N, N) of block ``layer`` after the softmax, over [CLS, registers, patches]."""
        x_TD, packing, grids = self._tokens([pixels], None)
        packing.rope = self._rope(grids, None, 0)
        last = layer % len(self.blocks)
        for block in self.blocks[:last]:
            x_TD = block(x_TD, packing)
        block = cast(Block, self.blocks[last])
        return block.attn.weights(block.norm1(x_TD), packing)[0]

    def _tokens(
        self, crops: Sequence[Tensor], masks: Sequence[Tensor | None] | None
    ) -> tuple[Tensor, Packing, list[tuple[int, int]]]:
        size = self.config.patch_size
        grids = [(pixels.shape[-2] // size, pixels.shape[-1] // size) for pixels in crops]
        groups = []
        for pixels, mask, grid in zip(crops, masks or [None] * len(crops), grids, strict=True):
            patches = self.patch_embed(pixels)
            patches = patches.to(self.cls_token.dtype)  # under autocast the residual stream keeps the parameters' dtype
            prefix: Tensor = self.cls_token
            if self.config.mask_token:
                if mask is not None:
                    patches = torch.where(mask.unsqueeze(-1), self.mask_token, patches)
                else:
                    prefix = prefix + 0 * self.mask_token  # so that it has a gradient on every process, every step
            elif mask is not None:
                raise ValueError("masks given to a network without a mask token (mask_token: false)")
            if self.config.position == "learned":
                position = self.positions(self.pos_embed, grid)
                prefix, patches = prefix + position[:, :1], patches + position[:, 1:]
            if self.config.registers:
                prefix = torch.cat((prefix, self.storage_tokens), dim=1)
            groups.append(torch.cat((prefix.expand(patches.shape[0], -1, -1), patches), dim=1))
        packing = Packing(
            [group.shape[0] for group in groups], [group.shape[1] for group in groups], [None] * len(grids)
        )
        flat = [group.flatten(0, 1) for group in groups]
        return flat[0] if len(flat) == 1 else torch.cat(flat), packing, grids

    def _rope_is_per_block(self, draws: StepDraws | None) -> bool:
        return (
            self.config.position == "rope"
            and self.training
            and draws is not None
            and self.rope_embed.per_block
            and self.rope_embed.drawn
        )

    def _rope(
        self, grids: Sequence[tuple[int, int]], draws: StepDraws | None, layer: int
    ) -> list[tuple[Tensor, Tensor] | None]:
        if self.config.position != "rope":
            return [None] * len(grids)
        return [
            self.rope_embed(height, width, self.prefix, draws, layer, group)
            for group, (height, width) in enumerate(grids)
        ]

    def _run(self, block: nn.Module, x_TD: Tensor, packing: Packing, kept: dict[str, Kept]) -> Tensor:
        if self.recompute != "none" and self.training and torch.is_grad_enabled():
            # a copy, because the rope of `packing` may have changed when the block runs again
            packing = Packing(packing.crops, packing.tokens, packing.rope)
            return run_again(block, self.recompute, x_TD, packing, kept)
        return block(x_TD, packing, kept)

    def _readout(self, x_TD: Tensor, packing: Packing, local_group: int | None, *, norm: bool = True) -> list[Features]:
        readout = []
        normed = packing.split(self.norm(x_TD) if norm else x_TD)
        untied = self.training and norm and self.config.local_cls_norm
        for group, (prenorm, tokens) in enumerate(zip(packing.split(x_TD), normed, strict=True)):
            prefix = tokens[:, : self.prefix]
            if untied and group == local_group:
                prefix = self.local_cls_norm(prenorm[:, : self.prefix])
            elif untied and not (local_group is not None and local_group < len(normed)):
                unused = sum(parameter.sum() for parameter in self.local_cls_norm.parameters())
                prefix = prefix + 0 * unused  # so that the norm has a gradient on every process, every step
            readout.append(
                Features(
                    cls=prefix[:, 0],
                    registers=prefix[:, 1:],
                    patches=tokens[:, self.prefix :],
                    prenorm=prenorm,
                )
            )
        return readout
