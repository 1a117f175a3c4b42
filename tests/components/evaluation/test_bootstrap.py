"""The bootstrap against formulas, an independent resampling in plain Python, and truths that samples are drawn from."""

import math

import numpy as np
import pytest

from components.evaluation.bootstrap import compare, interval
from tests.benchmarks.gates import discordant_pair, superiority_rate
from training.probes.outcome import Items


def answers(seed, count=400, rate=0.6):
    return Items.of_mean(np.random.default_rng(seed).random(count) < rate)


def ratios(seed, count=60, groups=4, root=False):
    generator = np.random.default_rng(seed)
    size = generator.lognormal(0, 1, (count, groups)) * (generator.random((count, groups)) < 0.6)
    return Items(np.stack([size * generator.random((count, groups)), size], axis=-1), root)


def measured(rows, root):
    """The measure of a list of images, by loops."""
    values = []
    for group in zip(*rows, strict=True):
        above, below = (math.fsum(part) for part in zip(*group, strict=True))
        if below > 0:
            values.append(above / below)
    value = math.fsum(values) / len(values)
    return math.sqrt(value) if root else value


@pytest.mark.parametrize("root", [False, True])
def test_against_drawing_images_one_by_one(root):
    one, other = ratios(1, root=root), ratios(2, root=root)
    generator = np.random.default_rng(5)
    mine, theirs = one.values.tolist(), other.values.tolist()
    drawn = []
    for _ in range(1500):
        rows = generator.integers(0, 60, 60)
        drawn.append(measured([mine[row] for row in rows], root) - measured([theirs[row] for row in rows], root))
    found = compare(one, other, resamples=6000, certainty=0.9)
    assert found.difference == pytest.approx(measured(mine, root) - measured(theirs, root), abs=1e-12)
    spread = np.std(drawn)
    assert found.detectable == pytest.approx((1.2816 + 0.8416) * spread, rel=0.07)
    # Plain percentiles, but for the widening for few images: 1.29607 (Student, 59) * sqrt(60 / 59) = 1.3070 -> 9.56 %.
    assert found.low == pytest.approx(np.quantile(drawn, 0.0956), abs=0.15 * spread)
    low, high = found.interval  # Student 1.67109 * sqrt(60 / 59) = 1.6852 -> 4.60 %
    assert low == pytest.approx(np.quantile(drawn, 0.046), abs=0.2 * spread)
    assert high == pytest.approx(np.quantile(drawn, 0.954), abs=0.2 * spread)


def test_right_and_wrong_answers_against_the_normal_formula():
    one, other = discordant_pair(np.random.default_rng(0), 4000, 0.2, 0.02)
    found = compare(one, other, resamples=8000)
    differences = one.values[:, 0, 0] - other.values[:, 0, 0]
    error = differences.std() / math.sqrt(4000)
    assert found.difference == pytest.approx(differences.mean(), abs=1e-12) and found.images == 4000
    assert found.low == pytest.approx(found.difference - 1.645 * error, abs=0.08 * error)
    assert found.interval == pytest.approx(
        (found.difference - 1.96 * error, found.difference + 1.96 * error), abs=0.12 * error
    )
    assert found.detectable == pytest.approx((1.645 + 0.8416) * error, rel=0.03)


def test_one_network_alone():
    items = answers(1, 500)
    found = interval(items, resamples=4000)
    share = items.values[:, 0, 0].mean()
    half = 1.96 * math.sqrt(share * (1 - share) / 500)
    assert found.value == pytest.approx(share, abs=1e-12) and (found.images, found.certainty) == (500, 0.95)
    assert (found.low, found.high) == pytest.approx((share - half, share + half), abs=0.1 * half)


def test_pairing_counts():
    """Two networks that differ on few images are told apart where two independent ones would not be."""
    one = answers(1, 2000)
    values = one.values.copy()
    values[np.flatnonzero(values[:, 0, 0] == 1)[:20], 0, 0] = 0
    found = compare(one, Items(values))
    assert found.difference == pytest.approx(0.01) and found.low > 0.006
    alone = interval(one)
    assert alone.high - alone.low > 0.04


def test_equal_answers_are_exactly_no_difference():
    one = ratios(3)
    for count in (1, 60):
        part = Items(one.values[:count])
        found = compare(part, Items(part.values.copy()))
        assert found.equal and (found.difference, found.low, found.interval, found.detectable) == (0, 0, (0, 0), 0)
    # Equal measures of unequal answers are not that.
    assert not compare(Items.of_mean(np.array([0.0, 1.0])), Items.of_mean(np.array([1.0, 0.0]))).equal


def test_smaller_may_be_better():
    one, other = ratios(1, root=True), ratios(2, root=True)
    errors, scores = compare(one, other, larger_is_better=False), compare(other, one)
    assert errors == scores
    assert errors.difference == pytest.approx(other.measure()[0] - one.measure()[0], abs=1e-12)


def test_equal_seeds_give_equal_figures_whatever_the_blocks_and_the_order(monkeypatch):
    one, other = ratios(1, 50), ratios(2, 50)
    found = compare(one, other, seed=4)
    assert compare(one, other, seed=4) == found != compare(one, other, seed=5)
    order = np.random.default_rng(0).permutation(50)
    shuffled = compare(Items(one.values[order]), Items(other.values[order]), seed=4)
    assert (shuffled.low, *shuffled.interval) == pytest.approx((found.low, *found.interval), abs=1e-12)
    monkeypatch.setattr("components.evaluation.bootstrap._CELLS", 300)
    small = compare(one, other, seed=4)
    assert (small.low, *small.interval) == pytest.approx((found.low, *found.interval), abs=1e-12)


def test_a_class_that_some_samples_do_not_show():
    """What cannot be measured in a drawn sample is left out of the bounds; what cannot be measured at all stays so."""
    values = np.zeros((6, 1, 2))
    values[0] = [0.5, 1.0]
    found = interval(Items(values), resamples=200)
    assert found.value == found.low == found.high == 0.5
    nothing = compare(Items(np.zeros((6, 1, 2))), Items(values))
    assert math.isnan(nothing.difference) and math.isnan(nothing.low) and not nothing.equal
    nothing = compare(Items(np.zeros((6, 1, 2))), Items(np.zeros((6, 1, 2))))
    assert math.isnan(nothing.low) and not nothing.equal


def test_items_of_different_images_are_refused():
    with pytest.raises(ValueError, match="not of one measure on the same images"):
        compare(answers(1, 10), answers(1, 11))
    with pytest.raises(ValueError, match="not of one measure"):
        compare(ratios(1, root=True), ratios(1))
    with pytest.raises(ValueError, match="no images"):
        interval(Items(np.zeros((0, 1, 2))))


def test_a_superiority_gate_keeps_its_promise():
    """2,000 test images, 20 % discordant pairs: chance passes in about 5 % of 200 repeats, 3 points in over 85 %."""
    assert superiority_rate(2000, 0.2, 0.0, repeats=200, seed=1) <= 16 / 200
    assert superiority_rate(2000, 0.2, 0.03, repeats=200, seed=2) >= 0.85


@pytest.mark.parametrize(("count", "discordant"), [(30, 0.2), (100, 0.2), (400, 0.05)])
def test_bounds_cover_the_truth_for_few_images(count, discordant):
    """800 samples: 5 % wrong has a standard error of 0.8 points."""
    generator = np.random.default_rng(count)
    pairs = [discordant_pair(generator, count, discordant, 0.0) for _ in range(800)]
    low = [compare(one, other, resamples=400, seed=seed).low for seed, (one, other) in enumerate(pairs)]
    wrong = float(np.mean(np.array(low) > 1e-12))
    assert 0.015 <= wrong <= 0.075
