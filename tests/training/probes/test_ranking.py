import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from foundry.errors import UserError
from training.probes.ranking import (
    POSITIVES,
    average_precision,
    positive_places,
    rank,
    relations_from_labels,
    retrieval,
)

RIGHT = {"easy": {1}, "medium": {1, 2}, "hard": {2}}
IGNORED = {"easy": {-1, 2}, "medium": {-1}, "hard": {-1, 1}}


def slow_scores(queries, gallery, relations, protocol, ks):
    """One query and one image at a time: areas under the curve point by point."""
    trapezoids, plains, firsts, counted = [], [], [], []
    for number, query in enumerate(queries):
        cosines = [
            sum(a * b for a, b in zip(query, row, strict=True)) / np.sqrt(sum(query**2)) / np.sqrt(sum(row**2))
            for row in gallery
        ]
        order = sorted(range(len(gallery)), key=lambda index: -cosines[index])
        total = sum(int(relations[number, index]) in RIGHT[protocol] for index in order)
        if total == 0:
            continue
        seen = right = 0
        recall, precision, trapezoid, plain, first = 0.0, 1.0, 0.0, 0.0, None
        for index in order:
            if int(relations[number, index]) in IGNORED[protocol]:
                continue
            seen += 1
            if int(relations[number, index]) in RIGHT[protocol]:
                right += 1
                plain += right / seen / total
                first = seen - 1 if first is None else first
            new_recall, new_precision = right / total, right / seen
            trapezoid += (new_recall - recall) * (precision + new_precision) / 2
            recall, precision = new_recall, new_precision
        trapezoids.append(trapezoid)
        plains.append(plain)
        firsts.append(first)
        counted.append(number)
    recalls = {k: np.mean([first < k for first in firsts]) if firsts else np.nan for k in ks}
    return trapezoids, plains, counted, recalls


def test_a_hundred_random_cases_with_junk_equal_a_slow_loop():
    left_out = 0
    for case in range(100):
        rng = np.random.default_rng(case)
        queries, gallery = rng.normal(size=(3, 4)), rng.normal(size=(int(rng.integers(1, 25)), 4))
        relations = rng.choice([0, 1, 2, -1], p=[0.5, 0.15, 0.15, 0.2], size=(3, len(gallery))).astype(np.int8)
        found = retrieval(queries, gallery, relations, ks=(1, 3, 10))
        for protocol in RIGHT:
            result = getattr(found, protocol)
            trapezoids, plains, counted, recalls = slow_scores(queries, gallery, relations, protocol, (1, 3, 10))
            assert result.queries.tolist() == counted and result.left_out == 3 - len(counted)
            assert np.allclose(result.average_precision, trapezoids) and np.allclose(
                result.average_precision_plain, plains
            )
            assert result.recall == pytest.approx(recalls, nan_ok=True)
            assert result.mean_ap == pytest.approx(np.mean(trapezoids) if trapezoids else np.nan, nan_ok=True)
            assert result.mean_ap_plain == pytest.approx(np.mean(plains) if plains else np.nan, nan_ok=True)
            left_out += result.left_out
    assert left_out > 20  # the cases do contain queries without positives


def test_the_plain_convention_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(50):
        ranked = rng.choice([0, 1, 2, -1], size=40)
        for positives in POSITIVES.values():
            kept = ranked[np.isin(ranked, [0, *positives])]
            public = average_precision_score(np.isin(kept, positives), -np.arange(len(kept)))
            assert average_precision(positive_places(ranked, positives), "plain") == pytest.approx(public)


@pytest.mark.parametrize(
    "places, trapezoid, plain",
    [
        ([0], 1.0, 1.0),
        ([1], 0.25, 0.5),  # from precision 0 to 1/2
        ([0, 1, 2], 1.0, 1.0),
        ([0, 2], (1.0 + (1 / 2 + 2 / 3) / 2) / 2, (1 + 2 / 3) / 2),
        ([1, 3], ((0 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2, 1 / 2),
    ],
)
def test_average_precisions_by_hand(places, trapezoid, plain):
    assert average_precision(np.array(places)) == pytest.approx(trapezoid)
    assert average_precision(np.array(places), "plain") == pytest.approx(plain)


def test_no_positive_has_no_average_precision():
    with pytest.raises(ValueError, match="positive"):
        average_precision(np.array([], int))


def test_protocols_take_the_other_positives_for_junk():
    queries, gallery = np.array([[1.0, 0.0]]), np.array([[np.cos(a), np.sin(a)] for a in (0.1, 0.2, 0.3, 0.4, 0.5)])
    relations = np.array([[1, -1, 0, 2, 0]], np.int8)  # ranked in this order
    found = retrieval(queries, gallery, relations, ks=(1, 2))
    assert found.easy.mean_ap == 1.0 and found.easy.recall == {1: 1.0, 2: 1.0}
    assert found.hard.mean_ap == pytest.approx(0.25) and found.hard.recall == {1: 0.0, 2: 1.0}
    assert found.hard.first.tolist() == [1]  # easy positive and junk have gone
    assert found.medium.mean_ap == pytest.approx((1.0 + (1 / 2 + 2 / 3) / 2) / 2)


def test_ranks_by_cosine_with_ties_by_index_and_the_excluded_last():
    gallery = np.array([[2.0, 0.0], [0.0, 1.0], [5.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert rank(np.array([[3.0, 0.0], [0.0, 0.5]]), gallery).tolist() == [[0, 2, 3, 1, 4], [1, 3, 0, 2, 4]]
    order = rank(np.array([[3.0, 0.0], [0.0, 0.5]]), gallery, exclude=np.array([0, -1]))
    assert order.tolist() == [[2, 3, 1, 4, 0], [1, 3, 0, 2, 4]]


def test_a_collapsed_network_ranks_by_index():
    features = np.tile(np.random.default_rng(0).normal(size=(1, 37)).astype(np.float32), (301, 1))
    assert (rank(features[:5], features) == np.arange(301)).all()


def test_scores_do_not_depend_on_how_many_queries_are_ranked_at_once(monkeypatch):
    rng = np.random.default_rng(1)
    queries, gallery = rng.normal(size=(23, 6)), rng.normal(size=(40, 6))
    relations = rng.choice([0, 1, 2, -1], size=(23, 40)).astype(np.int8)
    whole = retrieval(queries, gallery, relations)
    monkeypatch.setattr("training.probes.ranking._CHUNK", 4)
    parts = retrieval(queries, gallery, relations)
    assert (whole.medium.average_precision == parts.medium.average_precision).all()
    assert (whole.hard.queries == parts.hard.queries).all()


def test_labels_make_easy_positives_and_the_query_itself_junk():
    assert relations_from_labels(np.array([0, 1, 0])).tolist() == [[-1, 0, 1], [0, -1, 0], [1, 0, -1]]
    apart = relations_from_labels(np.array([0, 1]), np.array([1, 0, 0]), same=np.array([2, -1]))
    assert apart.tolist() == [[0, 1, -1], [1, 0, 0]] and apart.dtype == np.int8
    assert relations_from_labels(np.array([4]), np.array([4, 5])).tolist() == [[1, 0]]


def test_leave_one_out_recall_by_labels_is_nearest_neighbour_accuracy():
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(5), 8)
    features = rng.normal(size=(5, 6))[labels] + rng.normal(size=(40, 6))
    found = retrieval(features, features, relations_from_labels(labels), ks=(1,))
    expected = []
    for left in range(40):
        rest = np.arange(40) != left
        public = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(features[rest], labels[rest])
        expected.append(public.predict(features[left : left + 1])[0] == labels[left])
    assert found.medium.recall[1] == np.mean(expected) and (found.medium.first < 1).tolist() == expected
    assert found.hard.left_out == 40 and np.isnan(found.hard.mean_ap)


def test_what_cannot_be_ranked_is_named():
    with pytest.raises(UserError, match="gallery features"):
        rank(np.eye(2), np.full((3, 2), np.nan))
    with pytest.raises(UserError, match="relations"):
        retrieval(np.eye(2), np.eye(2), np.full((2, 2), 3))
    with pytest.raises(UserError, match="recall"):
        retrieval(np.eye(2), np.eye(2), np.eye(2, dtype=np.int8), ks=(0,))
    with pytest.raises(ValueError, match="relations"):
        retrieval(np.eye(2), np.eye(2), np.zeros((2, 3), np.int8))
