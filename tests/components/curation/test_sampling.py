from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import scipy.stats

from components.curation.sampling import balanced_sample, effective_number, quotas


def by_hand(sizes: list[int], target: int, copies: int = 1) -> list[int]:
    """The largest equal share, counted up one by one; the remainder is left out."""
    share = 0
    while sum(min(share + 1, copies * size) for size in sizes) <= target and share < target:
        share += 1
    return [min(share, copies * size) for size in sizes]


def test_the_published_example() -> None:
    assert quotas(np.array([10, 4, 1]), 9, np.random.default_rng(0)).tolist() == [4, 4, 1]


@pytest.mark.parametrize("seed", range(40))
def test_quotas_against_counting_by_hand(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 30, size=generator.integers(1, 9))
    copies = int(generator.integers(1, 4))
    target = int(generator.integers(0, copies * sizes.sum() + 10))
    shares = quotas(sizes, target, generator, copies)
    least = np.array(by_hand(sizes.tolist(), target, copies))
    assert shares.sum() == min(target, copies * sizes.sum())
    assert (shares <= copies * sizes).all()
    assert set((shares - least).tolist()) <= {0, 1}


def test_the_remainder_goes_to_random_clusters_that_have_more() -> None:
    seen = Counter(tuple(quotas(np.array([9, 9, 9, 1]), 8, np.random.default_rng(seed)).tolist()) for seed in range(60))
    assert set(seen) == {(3, 2, 2, 1), (2, 3, 2, 1), (2, 2, 3, 1)}


def tree(sizes: dict[tuple[int, ...], int]) -> np.ndarray:
    return np.array([path for path, size in sizes.items() for _ in range(size)])


def test_levels_share_top_down() -> None:
    paths = tree({(0, 0): 50, (0, 1): 10, (0, 2): 2, (1, 3): 30})
    drawn = balanced_sample(paths, 40, seed=0)
    assert drawn.max() == 1 and drawn.sum() == 40
    counts = Counter(map(tuple, paths[drawn > 0].tolist()))
    assert counts == {(0, 0): 9, (0, 1): 9, (0, 2): 2, (1, 3): 20}


def test_flat_sampling_is_one_level_of_it() -> None:
    paths = tree({(0,): 10, (1,): 4, (2,): 1})
    assert Counter(paths[balanced_sample(paths, 9, seed=1) > 0, 0].tolist()) == {0: 4, 1: 4, 2: 1}


def test_everything_is_drawn_where_the_target_is_larger() -> None:
    paths = tree({(0, 0): 5, (1, 1): 3})
    assert balanced_sample(paths, 8, seed=0).tolist() == [1] * 8
    assert balanced_sample(paths, 100, seed=0).tolist() == [1] * 8


def test_copies_fill_up_rare_clusters_first_evenly_within_them() -> None:
    paths = tree({(0,): 10, (1,): 2})
    drawn = balanced_sample(paths, 14, seed=0, copies=3)
    assert drawn.sum() == 14
    assert drawn[10:].tolist() == [3, 3]
    assert drawn[:10].sum() == 8 and drawn[:10].max() == 1
    assert balanced_sample(paths, 1000, seed=0, copies=3).tolist() == [3] * 12


def test_draws_are_even_and_follow_the_seed() -> None:
    paths = tree({(0,): 20, (1,): 20})
    times = sum(balanced_sample(paths, 20, seed=seed) for seed in range(300))
    assert 0.35 * 300 < times.min() and times.max() < 0.65 * 300
    np.testing.assert_array_equal(balanced_sample(paths, 20, seed=7), balanced_sample(paths, 20, seed=7))


def test_the_effective_number_is_that_of_equal_clusters() -> None:
    assert effective_number(np.array([7, 7, 7, 0])) == pytest.approx(3, rel=1e-12)
    assert effective_number(np.array([5])) == 1 and effective_number(np.array([], dtype=np.int64)) == 0
    sizes = np.random.default_rng(0).integers(1, 90, 40)
    assert effective_number(sizes) == pytest.approx(np.exp(scipy.stats.entropy(sizes)), rel=1e-12)
