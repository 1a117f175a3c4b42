"""Rotary positions: published periods, invariants, and an independent rotation in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from training.models.architectures import ViTConfig
from training.models.draws import StepDraws
from training.models.rope import AxialRope, rope_periods, rotate

PUBLISHED_64 = [
    *(1, 1.33352, 1.77828, 2.37137, 3.16228, 4.21697, 5.62341, 7.49894),
    *(10, 13.33521, 17.78279, 23.71374, 31.62278, 42.16965, 56.23413, 74.98942),
]


def rope(head: int = 64, **settings: object) -> AxialRope:
    module = AxialRope(ViTConfig(dim=2 * head, heads=2, **settings))  # type: ignore[arg-type]
    module.init_weights()
    return module


def test_published_periods() -> None:
    torch.testing.assert_close(rope().periods, torch.tensor(PUBLISHED_64), rtol=5e-6, atol=0)
    wide = rope_periods(ViTConfig(dim=256, heads=2))
    assert wide.shape == (32,)
    torch.testing.assert_close(wide[1:] / wide[:-1], torch.full((31,), 1.15478), rtol=5e-6, atol=0)


def test_angles_against_a_direct_computation() -> None:
    height, width, prefix = 3, 5, 2
    cosine, sine = rope(16).eval()(height, width, prefix)
    assert cosine.shape == sine.shape == (prefix + height * width, 8)
    assert (cosine[:prefix] == 1).all() and (sine[:prefix] == 0).all()
    for row in range(height):
        for column in range(width):
            for j in range(4):
                period = 100 ** (j / 4)
                for axis, (place, size) in enumerate(((row, height), (column, width))):
                    angle = 2 * math.pi * (2 * (place + 0.5) / size - 1) / period
                    token = prefix + row * width + column
                    assert float(cosine[token, axis * 4 + j]) == pytest.approx(math.cos(angle), abs=1e-6)
                    assert float(sine[token, axis * 4 + j]) == pytest.approx(math.sin(angle), abs=1e-6)


def test_centre_of_an_odd_grid_is_not_rotated() -> None:
    cosine, sine = rope(16).eval()(5, 3, 0)
    assert (cosine[7] == 1).all() and (sine[7] == 0).all()


def test_rotation_pairs_and_prefix() -> None:
    torch.manual_seed(0)
    cosine, sine = rope(16).eval()(2, 2, 1)
    x = torch.randn(2, 5, 3, 16, dtype=torch.float64)
    turned = rotate(x, cosine.double(), sine.double())
    complex_x = torch.complex(x[..., :8], x[..., 8:])
    expected = complex_x * torch.complex(cosine, sine).to(torch.complex128)[None, :, None, :]
    torch.testing.assert_close(turned, torch.cat((expected.real, expected.imag), dim=-1))
    assert torch.equal(turned[:, 0], x[:, 0])


def test_scores_depend_on_differences_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 16, dtype=torch.float64)
    cosine, sine = (table.double().unflatten(0, (8, 8)) for table in rope(16).eval()(8, 8, 0))

    def at(x: torch.Tensor, row: int, column: int) -> torch.Tensor:
        return rotate(x.view(1, 1, 1, 16), cosine[row, column].view(1, -1), sine[row, column].view(1, -1)).flatten()

    reference = at(q, 1, 2) @ at(k, 3, 1)
    for row, column in ((0, 1), (2, 5), (4, 6)):
        torch.testing.assert_close(at(q, row, column) @ at(k, row + 2, column - 1), reference, rtol=1e-6, atol=1e-6)
    assert abs(at(q, 1, 2) @ at(k, 4, 1) - reference) > 1e-3


def test_gradient_of_the_rotation() -> None:
    cosine, sine = (table.double() for table in rope(16).eval()(1, 2, 1))
    x = torch.randn(1, 3, 2, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: rotate(value, cosine, sine), x)


def test_half_precision_is_rotated_in_float32() -> None:
    torch.manual_seed(0)
    cosine, sine = rope(16).eval()(4, 4, 0)
    x = torch.randn(1, 16, 1, 16).bfloat16()
    turned = rotate(x, cosine, sine)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(x.float(), cosine, sine).bfloat16())


def draws(step: int = 0) -> StepDraws:
    return StepDraws.for_images(0, step, range(2), 2, (1, 1))


def test_jitter_happens_in_training_with_draws_only() -> None:
    module = rope(16, rope_rescale=2.0)
    plain = module.eval()(3, 3, 0)[0]
    assert torch.equal(module.eval()(3, 3, 0, draws())[0], plain)
    assert torch.equal(module.train()(3, 3, 0)[0], plain)
    jittered = module.train()(3, 3, 0, draws())[0]
    assert not torch.equal(jittered, plain)
    assert torch.equal(module(3, 3, 0, draws())[0], jittered)
    assert not torch.equal(module(3, 3, 0, draws(1))[0], jittered)
    assert not torch.equal(module(3, 3, 0, draws(), group=1)[0], jittered)


def test_scope_of_the_jitter() -> None:
    per_step, per_block = rope(16, rope_rescale=2.0), rope(16, rope_rescale=2.0, rope_jitter_scope="block")
    assert torch.equal(per_step(3, 3, 0, draws(), layer=0)[0], per_step(3, 3, 0, draws(), layer=1)[0])
    assert not torch.equal(per_block(3, 3, 0, draws(), layer=0)[0], per_block(3, 3, 0, draws(), layer=1)[0])


def coordinates(module: AxialRope, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column coordinates of a 1 x 1 ... grid, read back from the slowest angles."""
    cosine, sine = module(2, 2, 0, draws(step))
    angles = torch.atan2(sine, cosine).unflatten(0, (2, 2)).double().numpy()
    slowest = float(module.periods[-1]) / (2 * math.pi)
    return angles[:, 0, 3] * slowest, angles[0, :, 7] * slowest


def test_distribution_of_the_jitter() -> None:
    rescale, jitter, shift = rope(16, rope_rescale=2.0), rope(16, rope_jitter=2.0), rope(16, rope_shift=0.25)
    factors = []
    for step in range(400):
        rows, columns = coordinates(rescale, step)
        assert rows / columns == pytest.approx(1.0, rel=1e-3)
        factors.append(math.log2(rows[1] / 0.5))
    assert -1 <= min(factors) < -0.97 and 0.97 < max(factors) <= 1
    assert abs(np.mean(factors)) < 5 * (1 / 3 / 400) ** 0.5
    assert np.std(factors) == pytest.approx(3**-0.5, rel=0.1)
    pairs = np.array([[math.log2(axis[1] / 0.5) for axis in coordinates(jitter, step)] for step in range(400)])
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.2 and np.abs(pairs).max() <= 1 + 1e-3
    shifts = np.array([[axis.mean() for axis in coordinates(shift, step)] for step in range(400)])
    assert abs(np.corrcoef(shifts.T)[0, 1]) < 0.2
    assert 0.24 < np.abs(shifts).max() <= 0.25 + 1e-3
