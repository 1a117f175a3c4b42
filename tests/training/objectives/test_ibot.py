"""The iBOT loss against loops over images and patches in float64."""

from __future__ import annotations

import pytest
import torch

from training.objectives.ibot import ibot_loss, mask_weights


def test_against_loops() -> None:
    torch.manual_seed(0)
    images, patches, prototypes = 6, 9, 12
    masks = torch.rand(images, patches) < 0.4
    masks[[1, 4]] = False
    student, teacher = torch.randn(images, patches, prototypes), torch.randn(images, patches, prototypes).softmax(-1)
    expected = 0.0
    for i in range(images):
        for p in range(patches):
            if masks[i, p]:
                log = (student[i, p].double() / 0.1).log_softmax(-1)
                expected += float(-(teacher[i, p].double() * log).sum()) / int(masks[i].sum()) / images
    loss = ibot_loss(student[masks], teacher[masks], mask_weights(masks), images)
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_unmasked_images_count_as_zeros() -> None:
    scores, targets = torch.zeros(3, 8), torch.eye(8)[:3]
    alone = ibot_loss(scores, targets, torch.full((3,), 1 / 3), 1)
    halved = ibot_loss(scores, targets, torch.full((3,), 1 / 3), 2)
    assert float(alone) == pytest.approx(float(torch.tensor(8.0).log()))
    assert float(halved) == pytest.approx(float(alone) / 2)


def test_weights_are_in_row_major_order() -> None:
    masks = torch.tensor([[True, False, True], [False, False, False], [True, True, True], [False, True, False]])
    expected = [0.5, 0.5, 1 / 3, 1 / 3, 1 / 3, 1.0]
    torch.testing.assert_close(mask_weights(masks), torch.tensor(expected))


def test_no_masked_patch() -> None:
    masks = torch.zeros(2, 4, dtype=torch.bool)
    scores = torch.zeros(0, 5, requires_grad=True)
    loss = ibot_loss(scores, torch.zeros(0, 5), mask_weights(masks), 2)
    loss.backward()
    assert float(loss.detach()) == 0.0
