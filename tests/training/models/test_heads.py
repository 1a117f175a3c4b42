"""Projection heads against a direct computation, their partial modes and their sizes."""

from __future__ import annotations

import pytest
import torch

from training.models.build import build_head


@pytest.mark.parametrize("weight_norm", [False, True])
def test_against_a_direct_computation(weight_norm: bool) -> None:
    head = build_head(12, 20, 8, 30, weight_norm=weight_norm).double()
    state = head.state_dict()
    if weight_norm:
        assert (state["last_layer.weight_g"] == 1).all()
        state["last_layer.weight_g"].copy_(torch.rand(30, 1) + 0.5)
    x = torch.randn(5, 12, dtype=torch.float64)
    hidden = x
    for layer in (0, 2, 4):
        hidden = hidden @ state[f"mlp.{layer}.weight"].T + state[f"mlp.{layer}.bias"]
        if layer < 4:
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    bottleneck = hidden / hidden.norm(dim=-1, keepdim=True)
    if weight_norm:
        direction = state["last_layer.weight_v"]
        prototypes = state["last_layer.weight_g"] * direction / direction.norm(dim=1, keepdim=True)
    else:
        prototypes = state["last_layer.weight"]
    torch.testing.assert_close(head(x), bottleneck @ prototypes.T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head(x, only="bottleneck"), bottleneck, rtol=1e-5, atol=1e-6)
    assert torch.equal(head(head(x, only="bottleneck"), only="prototypes"), head(x))


def test_frozen_gain() -> None:
    head = build_head(12, 20, 8, 30, weight_norm=True, trainable_gain=False)
    assert not head.last_layer.weight_g.requires_grad
    assert build_head(12, 20, 8, 30, weight_norm=True).last_layer.weight_g.requires_grad


@pytest.mark.parametrize(
    ("dim", "hidden", "bottleneck", "prototypes", "millions"),
    [
        (4096, 8192, 512, 262_144, 239.1),
        (4096, 4096, 384, 98_304, 72.9),
        (1024, 2048, 256, 65_536, 23.6),
        (1536, 2048, 384, 131_072, 58.5),
        (384, 2048, 256, 65_536, 22.3),
    ],
)
def test_published_sizes(dim: int, hidden: int, bottleneck: int, prototypes: int, millions: float) -> None:
    head = build_head(dim, hidden, bottleneck, prototypes, device="meta")
    parameters = sum(parameter.numel() for parameter in head.parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.06)


def test_names_and_start() -> None:
    state = build_head(12, 20, 8, 3000).state_dict()
    assert list(state) == [f"mlp.{n}.{kind}" for n in (0, 2, 4) for kind in ("weight", "bias")] + ["last_layer.weight"]
    assert state["last_layer.weight"].std() == pytest.approx(0.02, rel=0.03)
    assert all((tensor == 0).all() for name, tensor in state.items() if name.endswith("bias"))
    assert list(build_head(12, 20, 8, 30, layers=1).state_dict()) == ["mlp.0.weight", "mlp.0.bias", "last_layer.weight"]


def test_a_vanishing_bottleneck_gives_no_nan() -> None:
    head = build_head(12, 20, 8, 30)
    scores = head(torch.zeros(2, 12, requires_grad=True))
    scores.sum().backward()
    assert scores.abs().max() == 0
    assert not any(p.grad.isnan().any() for p in head.parameters() if p.grad is not None)
