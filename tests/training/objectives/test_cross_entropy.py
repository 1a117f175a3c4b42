"""Soft cross-entropy against float64 autograd."""

from __future__ import annotations

import pytest
import torch

from training.objectives import cross_entropy
from training.objectives.cross_entropy import soft_cross_entropy


def naive(scores: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, temperature: float) -> torch.Tensor:
    log_probabilities = (scores.double() / temperature).log_softmax(dim=-1)
    return -(weights.double() * (targets.double() * log_probabilities).sum(dim=-1)).sum()


@pytest.mark.parametrize("chunk", [1, 25, 1 << 24])
def test_value_and_gradient(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "_CHUNK", chunk)
    torch.manual_seed(0)
    targets = torch.rand(7, 11) * torch.tensor([1.0, 2.0, 0.0, 1.0, 0.5, 1.0, 3.0])[:, None]  # sums are free
    scores, weights = torch.randn(7, 11, requires_grad=True), torch.rand(7)
    double = scores.detach().double().requires_grad_()
    loss, expected = soft_cross_entropy(scores, targets, weights, 0.1), naive(double, targets, weights, 0.1)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(scores.grad.double(), double.grad, rtol=1e-5, atol=1e-6)


def test_large_scores_do_not_overflow() -> None:
    scores = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = soft_cross_entropy(scores, torch.tensor([[0.0, 1.0, 0.0]]), torch.ones(1), 0.1)
    assert float(loss.detach()) == pytest.approx(2e5)
    loss.backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[10.0, -10.0, 0.0]]))


def test_half_precision_scores_are_summed_in_float32() -> None:
    torch.manual_seed(0)
    scores, targets = torch.randn(5, 4096).bfloat16().requires_grad_(), torch.rand(5, 4096).softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = soft_cross_entropy(scores, targets, torch.ones(5), 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), naive(scores, targets, torch.ones(5), 0.1), rtol=1e-6, atol=0)
    loss.backward()
    assert scores.grad.dtype == torch.bfloat16


def test_no_rows() -> None:
    scores = torch.randn(0, 5, requires_grad=True)
    loss = soft_cross_entropy(scores, torch.zeros(0, 5), torch.zeros(0), 0.1)
    loss.backward()
    assert float(loss.detach()) == 0 and scores.grad.shape == (0, 5)
