"""What a network costs those who serve it: its size, its arithmetic and its speed."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foundry.images import Preprocessing

BATCH, ROUNDS = 16, 5


@dataclass(frozen=True)
class Speed:
    """Of one network in float32, its preprocessing left out."""

    megabytes: float
    """Of its weights, 10^6 bytes."""
    gflop: float
    """10^9 floating-point operations of products an image; a multiplication and an addition are two."""
    images_per_second: float
    """Median of some rounds of a batch."""


def measure_speed(model: nn.Module, preprocessing: Preprocessing, device: str) -> Speed:
    """The speed of ``model`` (on ``device``, in evaluation mode) for images as ``preprocessing`` gives them.

    On a CPU it runs on as many threads as torch is set to.
    """
    shape = (BATCH, len(preprocessing.mean), preprocessing.crop, preprocessing.crop)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode():
        # Fused attention is counted on no CPU; spelt out, it is the same arithmetic.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(images[:1])
        seconds = []
        for _ in range(ROUNDS + 1):
            _wait(device)
            begun = time.perf_counter()
            model(images)
            _wait(device)
            seconds.append(time.perf_counter() - begun)
    return Speed(
        megabytes=sum(each.numel() * each.element_size() for each in model.parameters()) / 1e6,
        gflop=counter.get_total_flops() / 1e9,
        images_per_second=BATCH / statistics.median(seconds[1:]),
    )


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
