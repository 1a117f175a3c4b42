import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

from foundry.errors import UserError
from training.probes.few_shot import STRENGTH, draw, few_shot


def planted(seed, each=12, classes=5, dim=10, spread=0.7):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(50).normal(size=(classes, dim))
    labels = np.repeat(np.arange(classes), each)
    return centres[labels] + spread * rng.normal(size=(len(labels), dim)), labels


def test_equals_scikit_learn_on_the_same_draws():
    (train, labels), (test, truth) = planted(0), planted(1, each=40)
    result = few_shot(train, labels, test, truth, shots=(1, 4), tries=3, seed=5)
    for shots in (1, 4):
        accuracies = []
        for number in range(3):
            chosen = draw(labels, shots, 5, number)
            public = LogisticRegression(C=STRENGTH, tol=1e-10, max_iter=5000)
            public.fit(normalize(train)[chosen], labels[chosen])
            right = public.predict(normalize(test)) == truth
            assert (right == result.hits[shots][number]).mean() >= 0.995
            accuracies.append(right.mean())
        assert result.mean[shots] == pytest.approx(np.mean(accuracies), abs=0.003)
        assert result.std[shots] == pytest.approx(np.std(accuracies, ddof=1), abs=0.005)
    assert result.mean[4] > result.mean[1] > 0.3


def test_a_draw_is_that_many_images_of_each_class_or_all_it_has():
    labels = np.array([2, 0, 0, 2, 0, 0, 7, 0])
    chosen = draw(labels, 3, 0, 0)
    assert len(set(chosen)) == len(chosen) and (np.diff(chosen) > 0).all()
    assert np.bincount(labels[chosen], minlength=8).tolist() == [3, 0, 2, 0, 0, 0, 0, 1]
    result = few_shot(np.eye(8), labels, np.eye(8), labels, shots=(1, 2, 3), tries=2)
    assert result.short_classes == {1: 0, 2: 1, 3: 2}


def test_draws_depend_on_seed_shots_and_try_and_are_even():
    labels = np.repeat(np.arange(3), 20)
    assert (draw(labels, 4, 1, 2) == draw(labels, 4, 1, 2)).all()
    others = [draw(labels, 4, 1, 3), draw(labels, 4, 2, 2)]
    assert all((draw(labels, 4, 1, 2) != other).any() for other in others)
    taken = np.bincount(np.concatenate([draw(labels, 5, 0, number) for number in range(400)]), minlength=60)
    assert taken.min() > 60 and taken.max() < 140  # 100 expected, standard deviation below 9


def test_all_images_of_every_class_leave_nothing_to_chance_and_scale_does_not_matter():
    (train, labels), (test, truth) = planted(2), planted(3)
    result = few_shot(train, labels, test, truth, shots=(12,), tries=3)
    assert result.std == {12: 0.0}
    scales = np.random.default_rng(0).uniform(0.1, 50, (len(train), 1))
    assert few_shot(train * scales, labels, 3 * test, truth, shots=(12,), tries=1).mean == pytest.approx(result.mean)


def test_a_single_draw_has_no_spread():
    (train, labels), (test, truth) = planted(4), planted(5)
    result = few_shot(train, labels, test, truth, shots=(2,), tries=1)
    assert result.std == {2: 0.0} and result.mean[2] == result.hits[2].mean() and result.hits[2].shape == (1, 60)


@pytest.mark.parametrize("change", [{"shots": ()}, {"shots": (0, 1)}, {"tries": 0}, {"strength": 0.0}])
def test_numbers_that_mean_nothing_are_refused(change):
    with pytest.raises(UserError, match="few-shot"):
        few_shot(np.eye(3), np.arange(3), np.eye(3), np.arange(3), **change)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="test features"):
        few_shot(np.eye(3), np.arange(3), np.full((3, 3), np.inf), np.arange(3))
