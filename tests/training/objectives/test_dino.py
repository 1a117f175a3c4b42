"""The DINO loss against loops over pairs in float64, and published values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.objectives.dino import dino_loss, pair_shares


def pair(scores: Tensor, targets: Tensor, temperature: float = 0.1) -> Tensor:
    return -(targets.double() * (scores.double() / temperature).log_softmax(-1)).sum(-1).mean()


def batch(locals_: int = 8, globals_: int = 2, images: int = 3, prototypes: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    targets = (torch.randn(globals_, images, prototypes) * 5).softmax(-1)
    return torch.randn(locals_, images, prototypes), torch.randn(globals_, images, prototypes), targets


@pytest.mark.parametrize(("locals_", "globals_"), [(8, 2), (10, 2), (1, 2), (3, 3)])
def test_terms_against_loops(locals_: int, globals_: int) -> None:
    small, large, targets = batch(locals_, globals_)
    local = [pair(s, t) for s in small for t in targets]
    glob = [pair(large[i], targets[j]) for i in range(globals_) for j in range(globals_) if i != j]
    ours = dino_loss(small, targets), dino_loss(large, targets, ignore_diagonal=True)
    torch.testing.assert_close(ours[0].double(), torch.stack(local).mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(ours[1].double(), torch.stack(glob).mean(), rtol=1e-6, atol=0)
    shares = pair_shares(globals_, locals_)
    together = shares[0] * ours[0] + shares[1] * ours[1]
    torch.testing.assert_close(together.double(), torch.stack(local + glob).mean(), rtol=1e-6, atol=0)


def test_eighteen_pairs() -> None:
    assert pair_shares(2, 8) == (pytest.approx(16 / 18), pytest.approx(2 / 18))
    assert pair_shares(2, 10)[0] == pytest.approx(20 / 22)
    assert pair_shares(2, 0) == (0.0, 1.0)


def test_all_crops_as_students_without_equal_ones() -> None:
    small, large, targets = batch()
    everything = torch.cat((large, small))
    pairs = [pair(everything[s], targets[t]) for s in range(10) for t in range(2) if s != t]
    assert len(pairs) == 18
    ours = dino_loss(everything, targets, ignore_diagonal=True)
    torch.testing.assert_close(ours.double(), torch.stack(pairs).mean(), rtol=1e-6, atol=0)


def test_gradient_in_either_shape() -> None:
    small, _, targets = batch()
    flat, double = small.flatten(0, 1).requires_grad_(), small.double().requires_grad_()
    dino_loss(flat, targets, temperature=0.2).backward()
    torch.stack([pair(s, t, 0.2) for s in double for t in targets]).mean().backward()
    torch.testing.assert_close(flat.grad.double(), double.grad.flatten(0, 1), rtol=1e-5, atol=1e-8)


def test_shares_of_unequal_processes_average_to_the_whole() -> None:
    small, _, targets = batch(images=3)
    whole = dino_loss(small, targets)
    parts = [dino_loss(small[:, rows], targets[:, rows], images=1.5) for rows in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(sum(parts) / 2, whole)


@pytest.mark.parametrize(
    ("prototypes", "value"), [(65_536, 11.090355), (98_304, 11.495820), (131_072, 11.783502), (262_144, 12.476649)]
)
def test_uniform_scores_give_the_logarithm_of_the_prototypes(prototypes: int, value: float) -> None:
    targets = torch.zeros(2, 1, prototypes)
    targets[:, 0, 5] = 1.0
    loss = dino_loss(torch.zeros(1, 1, prototypes), targets)
    assert float(loss) == pytest.approx(value, abs=2e-6) == pytest.approx(math.log(prototypes), abs=2e-6)


def test_one_crop_has_no_other_to_learn_from() -> None:
    _, large, targets = batch()
    with pytest.raises(ValueError, match="no pair"):
        dino_loss(large[:1], targets[:1], ignore_diagonal=True)
