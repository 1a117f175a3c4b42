"""Draws of the forward pass: golden counts, uniformity, and one answer for any number of processes."""

from __future__ import annotations

import numpy as np
import pytest

from training.models.draws import StepDraws, hashed_words


@pytest.mark.parametrize(
    ("batch", "rate", "kept"), [(64, 0.4, 38), (10, 0.3, 7), (1, 0.4, 1), (8, 0.0, 8), (2, 0.9, 1)]
)
def test_kept_counts_and_factor(batch: int, rate: float, kept: int) -> None:
    draws = StepDraws.for_images(0, 0, range(batch), batch, (1,))
    rows, factor = draws.kept(rate, 0, "ffn", 0)
    assert len(rows) == kept
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert factor == pytest.approx(batch / kept)


def test_the_subset_is_one_of_the_whole_batch() -> None:
    batch, crops = 12, (2, 3)
    whole = StepDraws.for_images(7, 3, range(batch), batch, crops)
    parts = [StepDraws.for_images(7, 3, images, batch, crops) for images in (range(0, 6), range(6, 12))]
    for group, count in enumerate(crops):
        rows, factor = whole.kept(0.3, 4, "attention", group)
        expected = {(int(row) // batch, int(row) % batch) for row in rows}
        union = set()
        for number, part in enumerate(parts):
            own, own_factor = part.kept(0.3, 4, "attention", group)
            assert own_factor == factor
            union |= {(int(row) // 6, int(row) % 6 + 6 * number) for row in own}
        assert union == expected
        assert len(expected) == int(batch * count * 0.7)


def test_draws_depend_on_every_integer() -> None:
    def kept(seed: int = 1, step: int = 1, layer: int = 1, branch: str = "ffn", group: int = 0) -> tuple[int, ...]:
        draws = StepDraws.for_images(seed, step, range(64), 64, (1, 1))
        return tuple(draws.kept(0.5, layer, branch, group)[0].tolist())

    variants = [kept(), kept(seed=2), kept(step=2), kept(layer=2), kept(branch="attention"), kept(group=1)]
    assert len(set(variants)) == len(variants)
    assert kept() == kept()


def test_every_sample_is_kept_equally_often() -> None:
    counts = np.zeros(20)
    for step in range(2000):
        counts[StepDraws.for_images(0, step, range(20), 20, (1,)).kept(0.4, 0, "ffn", 0)[0].numpy()] += 1
    # 12 of 20 each time: mean 1200, standard deviation sqrt(2000 * 0.6 * 0.4) = 21.9
    assert np.abs(counts - 1200).max() < 5 * 21.9


def test_words_are_uniform() -> None:
    values = hashed_words("a stream", np.arange(100_000)) / 2.0**64
    counts, _ = np.histogram(values, bins=50, range=(0, 1))
    chi_square = ((counts - 2000) ** 2 / 2000).sum()
    assert chi_square < 100  # 49 degrees of freedom: beyond 5 standard deviations
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02


def test_uniform_numbers() -> None:
    draws = StepDraws.for_images(0, 0, range(2), 4, (1,))
    other_process = StepDraws.for_images(0, 0, range(2, 4), 4, (1,))
    numbers = draws.uniform("rope", 0, 0, 1000)
    assert numbers == other_process.uniform("rope", 0, 0, 1000)
    assert 0 <= min(numbers) < 0.02 and 0.98 < max(numbers) < 1
    assert abs(np.mean(numbers) - 0.5) < 5 * (1 / 12 / 1000) ** 0.5
