"""Rise, peak and decay of curves that are known, and of recorded ones."""

from __future__ import annotations

import numpy as np
import pytest

from training.engine.decay import find_decay

STEPS = list(range(500, 20_500, 500))
RISE = np.concatenate([np.linspace(0.6, 0.8, 10), np.full(30, 0.8)])
FALLING = [0.7295, 0.7185, 0.7138, 0.7359, 0.7423, 0.7382, 0.7368, 0.7316, 0.731, 0.7283, 0.7271, 0.7271]
DINOV3 = [0.718, 0.7575, 0.7518, 0.7509, 0.7712, 0.7812, 0.7759, 0.773, 0.7729, 0.7711, 0.7687, 0.7679]
DINOV2 = [0.7856, 0.7992, 0.7914, 0.8116, 0.8225, 0.834, 0.8412, 0.8377, 0.8371, 0.8342, 0.8345, 0.8343]
DINO = [0.7437, 0.7514, 0.7736, 0.788, 0.7976, 0.8043, 0.8071, 0.821, 0.8268, 0.8348, 0.8351, 0.8374, 0.8404, 0.842]
"""Patch coherence every 500 steps of the laptop recipe on CIFAR-10, by objective (docs/performance.md); ``FALLING``:
DINOv3's with 4 registers in place of 2."""


def decaying(peak: int = 10, slope: float = 0.004, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """40 values that rise from 0.6 to 0.8 and fall from number ``peak`` on."""
    number = np.arange(40)
    curve = np.where(number < peak, 0.6 + 0.2 * number / peak, 0.8 - slope * (number - peak))
    return curve + noise * np.random.default_rng(seed).standard_normal(40)


def test_peak_and_decay_of_a_clean_curve() -> None:
    found = find_decay(STEPS, decaying(), chance=0.5)
    assert found.peak_step == STEPS[10] and found.peak == pytest.approx(0.796)  # the median of 0.78, 0.8 and 0.796
    assert found.bound == pytest.approx(0.796 - 0.03 * 0.296)
    assert found.established == STEPS[16]  # numbers 14, 15 and 16 are 0.784, 0.780 and 0.776


def test_established_as_soon_as_it_can_be_and_not_before() -> None:
    for count in range(1, 41):
        found = find_decay(STEPS[:count], decaying()[:count], chance=0.5)
        assert (found.established is not None) == (count > 16)


@pytest.mark.parametrize("seed", range(20))
def test_noise_moves_the_peak_a_little(seed: int) -> None:
    found = find_decay(STEPS, decaying(noise=0.003, seed=seed), chance=0.5)
    assert found.established is not None and abs(found.peak_step - STEPS[10]) <= 3 * 500


def test_a_flat_curve_does_not_start_it() -> None:
    generator = np.random.default_rng(0)
    starts = 0
    for _ in range(500):
        noise = generator.uniform(0.001, 0.02)
        starts += find_decay(STEPS, 0.8 + noise * generator.standard_normal(40), chance=0.5).established is not None
    assert starts <= 5


def test_neither_does_a_rise_or_a_plateau_under_noise() -> None:
    generator = np.random.default_rng(1)
    for curve in (np.linspace(0.6, 0.8, 40), RISE):
        for _ in range(100):
            assert find_decay(STEPS, curve + 0.003 * generator.standard_normal(40), chance=0.5).established is None


def test_a_late_start() -> None:
    late = decaying(peak=34)
    assert find_decay(STEPS[:38], late[:38], chance=0.5).established is None
    found = find_decay(STEPS, late, chance=0.5)
    assert found.peak_step == STEPS[34] and found.established is None
    longer = np.concatenate([late, [late[39] - 0.004]])
    assert find_decay([*STEPS, 20_500], longer, chance=0.5).established == 20_500


def test_one_outlier_is_neither_peak_nor_decay() -> None:
    curve = RISE.copy()
    curve[20], curve[39] = 0.95, 0.3
    found = find_decay(STEPS, curve, chance=0.5)
    assert found.peak == pytest.approx(0.8) and found.established is None


def test_a_curve_that_recovers_has_not_decayed() -> None:
    curve = decaying()
    curve[30:] = 0.81
    assert find_decay(STEPS, curve, chance=0.5).established is None


def test_recorded_curves() -> None:
    fallen = find_decay(STEPS[: len(FALLING)], FALLING, chance=0.5)
    assert (fallen.peak_step, fallen.established) == (2500, 6000)
    for curve in (DINOV3, DINOV2, DINO):  # falls by little, a plateau, still rises
        assert find_decay(STEPS[: len(curve)], curve, chance=0.5).established is None


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_values_say_nothing(count: int) -> None:
    assert find_decay(STEPS[:count], [0.8, 0.5, 0.5][:count]).established is None


def test_an_empty_curve_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 values"):
        find_decay([], [])
