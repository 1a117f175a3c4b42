from __future__ import annotations

import pytest

from components.evaluation.speed import measure_speed
from foundry.images import Preprocessing
from training.models.build import build_backbone


def test_operations_of_a_vision_transformer() -> None:
    dim, depth, patch, side = 64, 3, 8, 32
    spec = {"arch": "vit", "dim": dim, "depth": depth, "heads": 2, "patch_size": patch, "registers": 2}
    model = build_backbone(spec).eval()
    patches = (side // patch) ** 2
    tokens = 1 + 2 + patches
    products = tokens * (4 * dim * dim + 2 * dim * 4 * dim)  # qkv, output, two layers of the MLP
    attention = 2 * tokens * tokens * dim
    expected = 2 * (depth * (products + attention) + patches * dim * 3 * patch**2)
    found = measure_speed(model, Preprocessing(resize=side, crop=side), "cpu")
    assert 1e9 * found.gflop == pytest.approx(expected, rel=1e-9)
    assert found.images_per_second > 0
    assert 1e6 * found.megabytes == 4 * sum(each.numel() for each in model.parameters())
