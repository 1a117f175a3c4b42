"""KoLeo against loops in float64, and published values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.objectives.koleo import koleo_loss


def naive(embeddings: Tensor, size: int) -> Tensor:
    x = embeddings.double()
    x = x / x.norm(dim=1, keepdim=True)
    logs = []
    for start in range(0, len(x), size):
        group = x[start : start + size]
        for i in range(size):
            others = [j for j in range(size) if j != i]
            nearest = max(others, key=lambda j: float(group[i].detach() @ group[j].detach()))
            logs.append(((group[i] - group[nearest] + 1e-8).norm() + 1e-8).log())
    return -torch.stack(logs).mean()


@pytest.mark.parametrize(("batch", "size"), [(8, 8), (8, 4), (8, 2)])
def test_value_and_gradient(batch: int, size: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, 12, requires_grad=True)
    double = x.detach().double().requires_grad_()
    loss, expected = koleo_loss(x, size), naive(double, size)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(x.grad.double(), double.grad, rtol=1e-4, atol=1e-6)
    assert torch.equal(koleo_loss(x), koleo_loss(x, batch))


def test_published_values() -> None:
    torch.manual_seed(0)
    values = [float(koleo_loss(torch.randn(16, 1024))) for _ in range(20)]
    assert sum(values) / len(values) == pytest.approx(-0.32, abs=0.01)
    duplicates = torch.randn(4, 1024)
    duplicates[1] = duplicates[0]
    assert float(koleo_loss(duplicates)) == pytest.approx(7.3, abs=0.1)


def test_opposite_vectors_are_not_their_own_neighbours() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert float(koleo_loss(x)) == pytest.approx(-0.6931, abs=1e-3)


def test_half_precision_is_computed_in_float32() -> None:
    x = torch.randn(4, 64).half()
    x[1] = x[0]
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = koleo_loss(x)
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    torch.testing.assert_close(loss, koleo_loss(x.float()))


@pytest.mark.parametrize(("batch", "size"), [(1, None), (8, 1), (8, 3), (8, 16)])
def test_groups_that_do_not_fit(batch: int, size: int | None) -> None:
    with pytest.raises(ValueError, match="KoLeo in groups of"):
        koleo_loss(torch.randn(batch, 4), size)
