import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from foundry.errors import UserError
from training.probes.linear import split_by_class
from training.probes.logistic import STRENGTHS, Problem, logistic_regression

FEW = tuple(10.0 ** np.arange(-3, 3))


def planted(seed, count=400, dim=12, classes=5, spread=1.5):
    """Overlapping classes whose variance falls along rotated axes, away from the origin, as a network's features do."""
    axes = np.random.default_rng(7)
    centres, scales = axes.normal(size=(classes, dim)), np.arange(1, dim + 1) ** -0.7
    turned = np.linalg.qr(axes.normal(size=(dim, dim)))[0]
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    return ((centres[labels] + spread * rng.normal(size=(count, dim))) * scales) @ turned + 0.5, labels


def scikit_learn(x, y, strength):
    return LogisticRegression(C=strength, tol=1e-10, max_iter=5000).fit(x, y)


@pytest.mark.parametrize(
    "shape",
    [{}, {"count": 40, "dim": 80}, {"classes": 2}],
    ids=["many images", "fewer images than dimensions", "two classes"],
)
@pytest.mark.parametrize("strength", [1e-3, 1.0, 100.0])
def test_the_optimum_is_that_of_scikit_learn(shape, strength):
    (x, y), (test, _) = planted(1, **shape), planted(2, **(shape | {"count": 200}))
    ours, public = Problem(x, y).fit(strength, 1000), scikit_learn(x, y, strength)
    assert np.allclose(np.exp(ours.log_probabilities(test)), public.predict_proba(test), atol=2e-4)
    assert (ours.predict(test) == public.predict(test)).mean() > 0.994
    weight = ours.weight[:, 1:] - ours.weight[:, :1] if len(public.coef_) == 1 else ours.weight
    assert np.allclose(weight.T, public.coef_, atol=2e-3 * np.abs(public.coef_).max())


def test_the_optimum_is_that_of_the_formula():
    x, y = planted(3, count=60, dim=5, classes=3)
    strength = 2.0

    def objective(flat):
        weight, bias = flat[:15].reshape(5, 3), flat[15:]
        scores = x @ weight + bias
        return strength * (logsumexp(scores, axis=1) - scores[np.arange(60), y]).sum() + 0.5 * (weight**2).sum()

    slow = minimize(objective, np.zeros(18), tol=1e-12).x
    assert np.allclose(Problem(x, y).fit(strength, 1000).weight, slow[:15].reshape(5, 3), atol=1e-3)


def test_a_warm_start_does_not_move_the_optimum():
    x, y = planted(4)
    problem = Problem(x, y)
    start = problem.fit(1e-3, 1000)
    assert np.allclose(problem.fit(1.0, 1000, start=start).weight, problem.fit(1.0, 1000).weight, atol=1e-4)


def slow_selection(x, y, test, truth, strengths, held_out, seed):
    """Every C fitted by scikit-learn without warm start or early stop, on the same held-out images."""
    fitted, held = split_by_class(y, held_out, seed)
    accuracy = {c: scikit_learn(x[fitted], y[fitted], c).score(x[held], y[held]) for c in strengths}
    best = max(sorted(accuracy), key=lambda c: accuracy[c])
    return best, accuracy, scikit_learn(x, y, best).predict(test)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_choice_and_the_accuracy_are_those_of_scikit_learn_on_the_same_split(seed):
    (x, y), (test, truth) = planted(10 + seed), planted(20 + seed, count=1000)
    best, accuracy, predictions = slow_selection(x, y, test, truth, FEW, 0.1, seed)
    result = logistic_regression(x, y, test, truth, strengths=FEW, seed=seed)
    assert result.strength == best
    assert result.validation == pytest.approx({c: accuracy[c] for c in result.validation})
    assert abs(result.top1 - (predictions == truth).mean()) < 0.003
    recalls = [(predictions[truth == label] == label).mean() for label in range(5)]
    assert abs(result.mean_per_class - np.mean(recalls)) < 0.003
    assert result.top1 == (result.predictions == truth).mean()


@pytest.mark.parametrize("spread", [0.4, 2.5])
def test_leaving_the_path_early_does_not_change_the_choice(spread):
    shape = {"count": 250, "dim": 12, "classes": 3, "spread": spread}
    (x, y), (test, truth) = planted(30, **shape), planted(31, **shape)
    fitted, held = split_by_class(y, 0.1, 0)
    problem, accuracy = Problem(x[fitted], y[fitted]), {}
    classifier = None
    for strength in STRENGTHS:
        classifier = problem.fit(strength, 1000, start=classifier)
        accuracy[strength] = (classifier.predict(x[held]) == y[held]).mean()
    result = logistic_regression(x, y, test, truth)
    assert len(result.validation) < len(STRENGTHS)
    assert result.strength == max(STRENGTHS, key=lambda strength: accuracy[strength])


def test_the_published_grid():
    assert len(STRENGTHS) == 45 and STRENGTHS[0] == pytest.approx(1e-6) and STRENGTHS[-1] == pytest.approx(1e5)
    assert np.allclose(np.diff(np.log10(STRENGTHS)), 0.25)


def test_equal_seeds_give_equal_results_whatever_the_threads_and_other_seeds_another_split():
    (x, y), (test, truth) = planted(5, count=300), planted(6, count=300)
    results = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            results.append(logistic_regression(x, y, test, truth, strengths=FEW, seed=3))
    first, second = results
    assert first.validation == second.validation and (first.predictions == second.predictions).all()
    assert logistic_regression(x, y, test, truth, strengths=FEW, seed=4).validation != first.validation


def test_test_labels_do_not_take_part_in_the_choice():
    (x, y), (test, truth) = planted(7, count=300), planted(8, count=300)
    result = logistic_regression(x, y, test, truth, strengths=FEW)
    shuffled = logistic_regression(x, y, test, np.random.default_rng(0).permutation(truth), strengths=FEW)
    assert result.strength == shuffled.strength and (result.predictions == shuffled.predictions).all()
    assert result.top1 > 2 * shuffled.top1


def test_mean_per_class_weighs_classes_and_top1_images():
    train, labels = np.repeat(np.eye(3), 4, axis=0), np.repeat([0, 1, 5], 4)  # labels need not be without gaps
    test = np.array([[1.0, 0, 0]] * 8 + [[0, 0, 1.0]] + [[0, 1.0, 0]])
    truth = np.array([0] * 8 + [5] + [9])  # class 9 was never shown
    result = logistic_regression(train, labels, test, truth, strengths=(1.0,))
    assert result.predictions.tolist() == [0] * 8 + [5, 1]
    assert result.top1 == pytest.approx(0.9) and result.mean_per_class == pytest.approx(2 / 3)
    assert result.strength == 1.0 and result.validation == {}


def test_one_image_a_class_still_works():
    x = np.eye(4)
    result = logistic_regression(x, np.arange(4), x, np.arange(4), strengths=(0.1, 1.0))
    assert result.top1 == 1.0


@pytest.mark.parametrize(
    "change, words",
    [
        ({"strengths": (1.0, 0.0)}, "strengths"),
        ({"strengths": ()}, "strengths"),
        ({"held_out": 1.0}, "held_out"),
        ({"train": np.full((4, 4), np.nan)}, "train features are not all finite"),
        ({"test": np.eye(3)}, "test features of shape"),
    ],
)
def test_what_cannot_be_fitted_is_named(change, words):
    arguments = {"train": np.eye(4), "test": np.eye(4), "train_labels": np.arange(4), "test_labels": np.arange(4)}
    with pytest.raises(UserError, match=words):
        logistic_regression(**(arguments | change))
