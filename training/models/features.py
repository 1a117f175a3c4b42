"""What a backbone returns."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor


class Features(TypedDict):
    """Features of B images with N patches, D wide."""

    cls: Tensor
    """(B, D) image embedding: the CLS token (ViT) or the pooled map (ConvNeXt), after the final norm."""
    registers: Tensor
    """(B, R, D) register tokens after the final norm; R may be 0."""
    patches: Tensor
    """(B, N, D) patch features after the final norm, row by row."""
    prenorm: Tensor
    """(B, 1 + R + N, D) all tokens before the final norm."""
