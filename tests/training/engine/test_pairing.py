"""A student of a larger stride and its teacher speak of the same places: pictures whose patches can be told apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from training.data.loader import Batch
from training.engine.views import Views
from training.models.build import build_backbone
from training.recipe import Crops

PATCH, GRID = 8, 4
TEACHER = {"arch": "vit", "dim": 32, "depth": 1, "heads": 2, "patch_size": PATCH, "registers": 1, "init": "fan_in"}
STUDENTS = {
    8: {"arch": "vit", "dim": 32, "depth": 1, "heads": 2, "patch_size": 8, "init": "fan_in"},
    16: {"arch": "convnext", "depths": [1, 1, 1], "dims": [8, 16, 32], "layer_scale": 1.0, "init": "fan_in"},
    32: {"arch": "convnext", "depths": [1, 1, 1, 1], "dims": [8, 16, 32, 32], "layer_scale": 1.0, "init": "fan_in"},
}


def batch_of(image: Tensor) -> Batch:
    """Two global crops of one image: itself (S, S, 3), and its mirror image."""
    crops = torch.stack([image, image.flip(1)])
    nothing = torch.zeros((0, 1, 1, 3), dtype=torch.uint8)
    masks = torch.zeros((2, GRID**2), dtype=torch.bool)
    return Batch.of(0, crops, nothing, nothing, torch.zeros((0, 11)), masks)


def coloured(scale: int, seed: int) -> Tensor:
    """(S, S, 3) uint8 at ``scale`` times the teacher's size: each of the 16 patches has a colour of its own."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randperm(256, generator=generator)[: 3 * GRID**2].reshape(GRID, GRID, 3).to(torch.uint8)
    side = PATCH * scale
    return colours.repeat_interleave(side, 0).repeat_interleave(side, 1)


def means(pixels: Tensor, cells: int) -> Tensor:
    """(2, 16, 3): mean of each cell of (2, 3, S, S), row by row."""
    side = pixels.shape[-1] // cells
    return torch.nn.functional.avg_pool2d(pixels, side).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("stride", STUDENTS)
def test_a_cell_of_the_student_shows_what_the_patch_of_the_teacher_shows(stride: int) -> None:
    scale = stride // PATCH
    views = Views(batch_of(coloured(scale, 1)), Crops(global_size=PATCH * GRID), scale)
    teacher, student = (means(views.global_crops(each), GRID) for each in (1, scale))
    torch.testing.assert_close(teacher, student, rtol=1e-4, atol=1e-4)
    distances = torch.cdist(teacher[0], teacher[0]) + 10 * torch.eye(GRID**2)
    assert distances.min() > 0.05, "no two patches look alike"
    torch.testing.assert_close(teacher[1], teacher[0].unflatten(0, (GRID, GRID)).flip(1).flatten(0, 1))


@pytest.mark.parametrize("stride", STUDENTS)
def test_what_changes_in_one_patch_changes_that_feature_most(stride: int) -> None:
    scale = stride // PATCH
    student, teacher = build_backbone(STUDENTS[stride], seed=3).eval(), build_backbone(TEACHER, seed=4).eval()
    assert student.config.stride == stride
    crops = Crops(global_size=PATCH * GRID)
    before, other = coloured(scale, 1), coloured(scale, 2)
    side = PATCH * scale

    def features(network: Callable[[Tensor], dict[str, Tensor]], image: Tensor, size: int) -> Tensor:
        with torch.no_grad():
            return network(Views(batch_of(image), crops, scale).global_crops(size))["patches"][0]

    def most(network: Callable[[Tensor], dict[str, Tensor]], image: Tensor, size: int) -> int:
        return int((features(network, image, size) - features(network, before, size)).norm(dim=1).argmax())

    for place in range(GRID**2):
        row, column = side * (place // GRID), side * (place % GRID)
        changed = before.clone()
        changed[row : row + side, column : column + side] = other[row : row + side, column : column + side]
        assert most(teacher, changed, 1) == most(student, changed, scale) == place
