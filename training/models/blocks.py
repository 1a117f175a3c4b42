"""The block of a Vision Transformer, on the tokens of several groups of crops at once.

Shape letters: B crops, N tokens of a crop (CLS, registers, patches), T tokens of all crops together, D width, h heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.architectures import ViTConfig
from training.models.draws import StepDraws
from training.models.rope import rotate

BRANCHES = ("attention", "ffn")
"""Of a block, in their order."""


@dataclass
class Packing:
    """How the flat (T, D) tokens divide into groups of equally sized crops."""

    crops: list[int]
    tokens: list[int]
    rope: list[tuple[Tensor, Tensor] | None]

    @property
    def lengths(self) -> list[int]:
        """Flat tokens of each group."""
        return [crops * tokens for crops, tokens in zip(self.crops, self.tokens, strict=True)]

    def split(self, flat_TD: Tensor) -> list[Tensor]:
        """Views (B, N, D) of each group."""
        parts = flat_TD.split(self.lengths)
        return [part.unflatten(0, (b, n)) for part, b, n in zip(parts, self.crops, self.tokens, strict=True)]

    def kept(self, draws: StepDraws, rates: Sequence[float], device: torch.device) -> list[dict[str, Kept]]:
        """Stochastic depth of every block, whose ``rates`` are given: which crops keep its branches; {}: all do.

        All blocks' rows go to ``device`` in one copy that the host does not wait for.
        """
        found: list[dict[str, Kept]] = []
        for layer, rate in enumerate(rates):
            found.append({branch: self._kept(draws, rate, layer, branch) for branch in BRANCHES} if rate > 0 else {})
        every = [kept for block in found for kept in block.values()]
        if every and device.type != "cpu":
            rows = torch.cat([kept.rows for kept in every])
            rows = (rows.pin_memory() if device.type == "cuda" else rows).to(device, non_blocking=True)
            for kept, own in zip(every, rows.split([len(kept.rows) for kept in every]), strict=True):
                kept.rows = own
        return found

    def _kept(self, draws: StepDraws, rate: float, layer: int, branch: str) -> Kept:
        crops, rows, factors, start = [], [], [], 0
        for group, (tokens, length) in enumerate(zip(self.tokens, self.lengths, strict=True)):
            chosen, factor = draws.kept(rate, layer, branch, group)
            rows.append((start + chosen[:, None] * tokens + torch.arange(tokens)).reshape(-1))
            crops.append(len(chosen))
            factors.append(factor)
            start += length
        return Kept(crops, torch.cat(rows), factors)


@dataclass
class Kept:
    """The crops that keep one branch of one block in training."""

    crops: list[int]
    """Of each group, how many."""
    rows: Tensor
    """(n,) int64: their tokens among the flat ones."""
    factors: list[float]
    """Of each group, what the branch is multiplied by."""

    def scale(self, packing: Packing) -> Tensor:
        """(n, 1) float32: the factor of each row."""
        counts = zip(self.crops, packing.tokens, self.factors, strict=True)
        parts = [torch.full((crops * tokens, 1), factor, device=self.rows.device) for crops, tokens, factor in counts]
        return torch.cat(parts)


class MaskedKeyBiasLinear(nn.Linear):
    """Linear (D -> 3D) whose bias counts for queries and values only: ``bias * bias_mask``."""

    bias_mask: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 3 * dim)
        self.register_buffer("bias_mask", torch.empty(3 * dim))

    def init_mask(self) -> None:
        """Zero for the keys' third, one elsewhere."""
        self.bias_mask.fill_(1.0)
        self.bias_mask.chunk(3)[1].zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) -> (T, 3D)."""
        return F.linear(x, self.weight, self.bias * self.bias_mask.to(self.bias.dtype))


class Attention(nn.Module):
    """Multi-head self-attention inside each crop; linear maps run over all crops at once."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv: nn.Linear
        if config.qkv_bias and not config.key_bias:
            self.qkv = MaskedKeyBiasLinear(config.dim)
        else:
            self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, x_TD: Tensor, packing: Packing) -> Tensor:
        """(T, D) -> (T, D)."""
        attended = []
        for qkv, rope in zip(packing.split(self.qkv(x_TD)), packing.rope, strict=True):
            q, k, v = self._heads(qkv, rope)
            attended.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1))
        return self.proj(attended[0] if len(attended) == 1 else torch.cat(attended))

    def _heads(self, qkv: Tensor, rope: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, 3D) -> queries, keys and values (B, h, N, d_h), the first two rotated."""
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).unbind(2)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def weights(self, x_TD: Tensor, packing: Packing) -> list[Tensor]:
        """The attention (B, h, N, N) of each group after the softmax."""
        maps = []
        for qkv, rope in zip(packing.split(self.qkv(x_TD)), packing.rope, strict=True):
            q, k, _ = self._heads(qkv, rope)
            maps.append((q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1))
        return maps


class LayerScale(nn.Module):
    """A learned factor for each channel; the block applies it as it adds the branch."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.gamma = nn.Parameter(torch.empty(dim))


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) -> (T, D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    """w3(silu(w1 x) * (w2 x))."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden)
        self.w2 = nn.Linear(dim, hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) -> (T, D)."""
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class Block(nn.Module):
    """x + LS1 Attention(LN1 x), then x + LS2 FFN(LN2 x), each branch on a subset of the crops in training."""

    def __init__(self, config: ViTConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.mlp = (Mlp if config.ffn == "mlp" else SwiGlu)(config.dim, config.hidden)
        self._compiled: dict[str, Callable[[Tensor, Packing], Tensor]] = {}
        self.ls1 = self.ls2 = None
        if config.layer_scale is not None:
            self.ls1 = LayerScale(config.dim, config.layer_scale)
            self.ls2 = LayerScale(config.dim, config.layer_scale)

    def forward(self, x_TD: Tensor, packing: Packing, keeps: Mapping[str, Kept] | None = None) -> Tensor:
        """(T, D) -> (T, D). ``keeps``: by branch, the crops that it is computed for; without it all."""
        for branch, scale in zip(BRANCHES, (self.ls1, self.ls2), strict=True):
            if keeps:
                kept = keeps[branch]
                subset = Packing(kept.crops, packing.tokens, packing.rope)
                update = self._branch(branch, x_TD.index_select(0, kept.rows), subset) * kept.scale(packing)
                update = update if scale is None else update * scale.gamma
                x_TD = x_TD.index_add(0, kept.rows, update.to(x_TD.dtype))
            else:
                update = self._branch(branch, x_TD, packing)
                x_TD = x_TD + update if scale is None else torch.addcmul(x_TD, update.to(x_TD.dtype), scale.gamma)
        return x_TD

    def compile_branches(self) -> None:
        """Have torch.compile work on both branches; which crops take them is decided outside, step by step."""
        self._compiled = {
            "attention": torch.compile(self._attention, dynamic=None),
            "ffn": torch.compile(self._feed_forward, dynamic=None),
        }

    def _branch(self, branch: str, x_TD: Tensor, packing: Packing) -> Tensor:
        plain = self._attention if branch == "attention" else self._feed_forward
        return self._compiled.get(branch, plain)(x_TD, packing)

    def _attention(self, x_TD: Tensor, packing: Packing) -> Tensor:
        return self.attn(self.norm1(x_TD), packing)

    def _feed_forward(self, x_TD: Tensor, packing: Packing) -> Tensor:
        return self.mlp(self.norm2(x_TD))
