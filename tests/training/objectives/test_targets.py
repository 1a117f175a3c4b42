"""Teacher targets against a direct float64 version, and their invariants."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.objectives.targets import SoftmaxCentering, sinkhorn_knopp


def naive(scores: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """The published order of operations, prototypes by samples, in float64."""
    q = torch.exp(scores.double() / temperature).T
    q /= q.sum()
    prototypes, samples = q.shape
    for _ in range(iterations):
        q /= q.sum(dim=1, keepdim=True)
        q /= prototypes
        q /= q.sum(dim=0, keepdim=True)
        q /= samples
    return (q * samples).T


@pytest.mark.parametrize("temperature", [0.04, 0.07])
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_against_the_direct_version(temperature: float, iterations: int) -> None:
    torch.manual_seed(0)
    scores = torch.randn(24, 40) * 0.3
    targets = sinkhorn_knopp(scores, temperature, iterations=iterations)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets.double(), naive(scores, temperature, iterations), rtol=2e-5, atol=1e-9)


def test_rows_and_columns() -> None:
    torch.manual_seed(0)
    scores = torch.randn(64, 16) * 0.05
    targets = sinkhorn_knopp(scores, 0.07)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(64))
    torch.testing.assert_close(targets.sum(dim=0), torch.full((16,), 64 / 16), rtol=0.02, atol=0)
    many = sinkhorn_knopp(scores, 0.07, iterations=50)
    torch.testing.assert_close(many.sum(dim=0), torch.full((16,), 4.0), rtol=1e-4, atol=0)


def test_adding_to_all_scores_or_to_a_prototype_changes_nothing() -> None:
    torch.manual_seed(0)
    scores = torch.randn(12, 8)
    targets = sinkhorn_knopp(scores, 0.07)
    torch.testing.assert_close(sinkhorn_knopp(scores + 100, 0.07), targets, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(sinkhorn_knopp(scores + torch.randn(8), 0.07), targets, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [5.0, 100.0])
def test_unbounded_scores_stay_finite_and_right(scale: float) -> None:
    torch.manual_seed(0)
    scores = torch.randn(30, 20, dtype=torch.float64) * scale
    scores[3] = 0.0
    scores[:, 4] -= 50 * scale
    targets = sinkhorn_knopp(scores, 0.04)  # exp(scores / 0.04) overflows even in float64 for the larger scale
    assert torch.isfinite(targets).all()
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(30))
    log = scores / 0.04
    for _ in range(3):
        log = log - log.logsumexp(dim=0, keepdim=True)
        log = log - log.logsumexp(dim=1, keepdim=True)
    torch.testing.assert_close(targets.double(), log.exp(), rtol=1e-2, atol=1e-3)


def test_rows_that_do_not_count() -> None:
    torch.manual_seed(0)
    scores = torch.randn(10, 6)
    valid = torch.tensor([True, True, False, True, False, True, True, True, True, False])
    scores[2] = 1e6
    targets = sinkhorn_knopp(scores, 0.07, valid=valid)
    torch.testing.assert_close(targets[valid], sinkhorn_knopp(scores[valid], 0.07))
    assert (targets[~valid] == 0).all()


def test_no_rows() -> None:
    assert sinkhorn_knopp(torch.zeros(0, 5), 0.07).shape == (0, 5)
    assert (sinkhorn_knopp(torch.randn(3, 5), 0.07, valid=torch.zeros(3, dtype=torch.bool)) == 0).all()


@pytest.mark.parametrize("planted", [float("nan"), float("inf")])
def test_a_broken_teacher_is_not_hidden(planted: float) -> None:
    scores = torch.randn(4, 5)
    scores[1, 2] = planted
    assert sinkhorn_knopp(scores, 0.07).isnan().any()


def test_under_autocast_the_targets_are_float32s() -> None:
    torch.manual_seed(0)
    scores = torch.randn(16, 32) * 0.3
    with torch.autocast("cpu", torch.bfloat16):
        targets = sinkhorn_knopp(scores, 0.04)
    assert torch.equal(targets, sinkhorn_knopp(scores, 0.04))


def test_the_input_is_not_changed() -> None:
    scores = torch.randn(4, 5)
    before = scores.clone()
    sinkhorn_knopp(scores, 1.0, valid=torch.tensor([True, False, True, True]))
    assert torch.equal(scores, before)


def test_centring() -> None:
    torch.manual_seed(0)
    centring = SoftmaxCentering(6)
    center = torch.zeros(6, dtype=torch.float64)
    for _ in range(4):
        scores = torch.randn(8, 6) + torch.arange(6)
        expected = ((scores.double() - center) / 0.04).softmax(-1)
        torch.testing.assert_close(centring(scores, 0.04).double(), expected, rtol=1e-4, atol=1e-7)
        centring.update(scores)
        center = 0.9 * center + 0.1 * scores.double().mean(0)
    torch.testing.assert_close(centring.center[0].double(), center, rtol=1e-5, atol=1e-6)
    assert list(centring.state_dict()) == ["center"]
