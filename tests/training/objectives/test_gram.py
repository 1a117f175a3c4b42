"""Gram anchoring against loops in float64, and its resampling of patch maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from training.objectives.gram import gram_loss, resize_patch_map


def naive(student: Tensor, teacher: Tensor, negatives: str) -> float:
    total = 0.0
    images, patches, _ = student.shape
    for image in range(images):
        s, t = student[image].double(), teacher[image].double()
        s, t = s / s.norm(dim=1, keepdim=True), t / t.norm(dim=1, keepdim=True)
        for i in range(patches):
            for j in range(patches):
                ours, theirs = float(s[i] @ s[j]), float(t[i] @ t[j])
                if negatives == "remove":
                    ours, theirs = max(ours, 0.0), max(theirs, 0.0)
                elif negatives == "remove_teacher":
                    ours = 0.0 if ours < 0 and theirs < 0 else ours
                    theirs = max(theirs, 0.0)
                total += (ours - theirs) ** 2
    return total / (images * patches**2)


@pytest.mark.parametrize("negatives", ["keep", "remove", "remove_teacher"])
def test_against_loops(negatives: str) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 5, 4), torch.randn(3, 5, 7)
    loss = gram_loss(student, teacher, negatives=negatives)  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(naive(student, teacher, negatives), rel=1e-5)


def test_values_known_in_advance() -> None:
    same = torch.randn(2, 6, 8)
    assert float(gram_loss(same, 3 * same)) == pytest.approx(0.0, abs=1e-12)
    orthonormal, equal = torch.eye(6).expand(2, 6, 6), torch.ones(2, 6, 6)
    assert float(gram_loss(orthonormal, equal)) == pytest.approx(1 - 1 / 6, rel=1e-6)


def test_gradient_reaches_the_student_only() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 5, requires_grad=True), torch.randn(2, 4, 5, requires_grad=True)
    gram_loss(student, teacher).backward()
    assert teacher.grad is None
    double = student.detach().double().requires_grad_()
    x, y = (torch.nn.functional.normalize(t.double(), dim=-1) for t in (double, teacher.detach()))
    (x @ x.mT - y @ y.mT).square().mean().backward()
    torch.testing.assert_close(student.grad.double(), double.grad, rtol=1e-4, atol=1e-7)


def test_shares_and_precision() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    parts = [gram_loss(student[rows], teacher[rows], images=1.5) for rows in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(sum(parts) / 2, gram_loss(student, teacher))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gram_loss(student, teacher), gram_loss(student.clone(), teacher))


def test_maps_are_resampled_like_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    maps = np.random.default_rng(0).normal(size=(8, 12, 3)).astype(np.float32)
    patches = torch.from_numpy(maps).flatten(0, 1).unsqueeze(0)
    resized = resize_patch_map(patches, (8, 12), (4, 6))
    # both use the cubic kernel with a = -0.75, pixel centres, no antialiasing and a replicated border
    expected = cv2.resize(maps, (6, 4), interpolation=cv2.INTER_CUBIC)
    torch.testing.assert_close(resized[0].unflatten(0, (4, 6)), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    assert resize_patch_map(patches, (8, 12), (8, 12)) is patches
    assert resize_patch_map(patches.bfloat16(), (8, 12), (4, 6)).dtype == torch.bfloat16
