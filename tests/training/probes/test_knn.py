import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from foundry.images import Preprocessing
from training.data.evaluation_set import EvaluationSet
from training.probes.knn import KnnProbe, knn


def blobs(seed, classes=6, each=15, dim=8, spread=1.1):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    labels = np.repeat(np.arange(classes), each)
    return centres[labels] + spread * rng.normal(size=(len(labels), dim)), labels


def slow_votes(train, labels, query, k, temperature, classes):
    """Straight from the formula, in float64, one image at a time."""
    train = train / np.linalg.norm(train, axis=1, keepdims=True)
    query = query / np.linalg.norm(query)
    similarity = train @ query
    votes = np.zeros(classes)
    for index in sorted(range(len(train)), key=lambda i: -similarity[i])[:k]:
        votes[labels[index]] += np.exp(similarity[index] / temperature)
    return votes


def brute_force(train, labels, test, truth, k, temperature=0.07):
    """(predictions, top-5 hits), one image at a time in float64; equal neighbours by index, equal votes by class."""
    classes = max(labels.max(), truth.max()) + 1
    predictions, hits = [], []
    for query, label in zip(test.astype(np.float64), truth, strict=True):
        votes = slow_votes(train.astype(np.float64), labels, query, k, temperature, classes)
        best = sorted(range(classes), key=lambda each: -votes[each])[:5]
        predictions.append(best[0])
        hits.append(label in best and votes[label] > 0)
    return np.array(predictions), np.array(hits)


@pytest.mark.parametrize("chunk", [1, 7, 1024])
@pytest.mark.parametrize("k", [1, 6, 35, 500])
def test_predictions_and_top5_hits_equal_brute_force(k, chunk):
    (train, labels), (test, truth) = blobs(11, classes=9, spread=2.5), blobs(12, classes=9, spread=2.5)
    result = knn(train, labels, test, truth, ks=(k, 3), chunk=chunk)
    predictions, hits = brute_force(train, labels, test, truth, k)
    assert (result.predictions == predictions).all() and (result.hits5 == hits).all()
    used = min(k, len(train))
    assert result.top1[used] == (predictions == truth).mean() and result.top5[used] == hits.mean()
    assert 0 < hits.sum() < len(hits)


@pytest.mark.parametrize("k", [1, 3, 10, 40])
def test_equal_neighbours_are_taken_by_index(k):
    rng = np.random.default_rng(13)
    train, test = rng.choice([-1.0, 1.0], (40, 4)), rng.choice([-1.0, 1.0], (30, 4))  # cosines 0, 1/2, 1: exact
    labels, truth = rng.integers(0, 12, 40), rng.integers(0, 12, 30)
    predictions, hits = brute_force(train, labels, test, truth, k)
    result = knn(train, labels, test, truth, ks=(k,), chunk=8)
    assert (result.predictions == predictions).all() and (result.hits5 == hits).all()


def test_numbers_of_neighbours_beyond_the_bank_are_counted_once():
    (train, labels), (test, truth) = blobs(14, each=2), blobs(15, each=2)
    result = knn(train, labels, test, truth, ks=(50, 12, 100))
    assert result.top1 == knn(train, labels, test, truth, ks=(12,)).top1 and len(result.predictions) == len(truth)


@pytest.mark.parametrize("k", [1, 7, 40])
def test_equals_the_formula(k):
    (train, labels), (test, truth) = blobs(1), blobs(2)
    result = knn(train, labels, test, truth, ks=(k,), chunk=17)
    votes = np.array([slow_votes(train, labels, query, k, 0.07, 6) for query in test])
    assert (result.predictions == votes.argmax(1)).all()
    assert result.top1[k] == pytest.approx((votes.argmax(1) == truth).mean())
    order = np.argsort(-votes, axis=1, kind="stable")[:, :5]
    hits = [(truth[i] in order[i]) and votes[i, truth[i]] > 0 for i in range(len(truth))]
    assert result.top5[k] == pytest.approx(np.mean(hits))


def test_equals_scikit_learn():
    (train, labels), (test, truth) = blobs(3), blobs(4)
    public = KNeighborsClassifier(
        n_neighbors=12, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(train, labels)
    result = knn(train, labels, test, truth, ks=(12,))
    assert result.top1[12] == pytest.approx(public.score(test, truth), abs=1e-9)


def test_scale_of_features_does_not_matter():
    (train, labels), (test, truth) = blobs(5), blobs(6)
    scales = np.random.default_rng(0).uniform(0.1, 50, (len(train), 1))
    assert knn(train, labels, test, truth).top1 == knn(train * scales, labels, test * 3, truth).top1


def test_more_neighbours_than_images_takes_all_and_few_classes_have_no_wrong_top5():
    (train, labels), (test, truth) = blobs(7, classes=3, each=4), blobs(8, classes=3, each=4)
    result = knn(train, labels, test, truth, ks=(200,))
    assert list(result.top1) == [12] and result.top5[12] == 1.0


def test_a_class_without_a_vote_is_no_top5_hit():
    train, labels = np.eye(6)[:5], np.arange(5)
    result = knn(train, labels, np.eye(6)[:1], np.array([4]), ks=(1,))
    assert result.top5[1] == 0.0


def test_probe_on_a_set_equals_k_nn_on_its_pixels(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["filename,label,split"]
    stored = {"train": [], "test": []}
    for split, count in (("train", 12), ("test", 6)):
        for number in range(count):
            label = number % 3
            array = rng.integers(0, 80, (16, 16, 3)).astype(np.uint8)
            array[..., label] += 120
            buffer = io.BytesIO()
            Image.fromarray(array).save(buffer, "PNG")
            (tmp_path / f"{split}{number}.png").write_bytes(buffer.getvalue())
            lines.append(f"{split}{number}.png,{'abc'[label]},{split}")
            stored[split].append((array, label))
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    preprocessing = Preprocessing(resize=16, crop=16)
    probe = KnnProbe(EvaluationSet.open(str(tmp_path)), preprocessing, k=3, batch=5)

    def model(pixels):
        return {"cls": pixels.flatten(1), "patches": pixels.flatten(2).transpose(1, 2)}

    vectors = {split: np.stack([preprocessing(array).ravel() for array, _ in rows]) for split, rows in stored.items()}
    labels = {split: np.array([label for _, label in rows]) for split, rows in stored.items()}
    expected = knn(vectors["train"], labels["train"], vectors["test"], labels["test"], ks=(3,))
    for _ in range(2):  # the second pass is from memory
        assert probe(model) == {"knn_top1": expected.top1[3], "knn_top5": expected.top5[3]}
    assert probe(lambda pixels: {"cls": torch.ones(len(pixels), 4), "patches": torch.ones(len(pixels), 1, 4)})[
        "knn_top1"
    ] == pytest.approx(1 / 3)
    limited = KnnProbe(EvaluationSet.open(str(tmp_path)), preprocessing, k=3, limit=3)
    assert set(limited(model)) == {"knn_top1", "knn_top5"}
