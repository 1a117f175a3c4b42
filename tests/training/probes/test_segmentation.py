import numpy as np
import pytest
from sklearn.metrics import confusion_matrix as public_confusion
from sklearn.metrics import jaccard_score

from training.probes.segmentation import confusion_matrix, segmentation_probe


def scenes(seed, count=12, grid=4, classes=3, size=(32, 32), noise=0.1):
    """Patch features that name the class of each cell, and the masks of those cells."""
    rng = np.random.default_rng(seed)
    codes = np.random.default_rng(7).normal(size=(classes, 5))
    cells = rng.integers(0, classes, (count, grid, grid))
    features = codes[cells].reshape(count, grid * grid, 5) + noise * rng.normal(size=(count, grid * grid, 5))
    rows = np.arange(size[0]) * grid // size[0]
    columns = np.arange(size[1]) * grid // size[1]
    masks = [cell[np.ix_(rows, columns)].astype(np.uint8) for cell in cells]
    return features.astype(np.float32), masks


def test_scores_equal_scikit_learn():
    train, train_masks = scenes(0, noise=2.0)
    test, test_masks = scenes(1, noise=2.0)
    test_masks[0][:5] = 255
    result = segmentation_probe(train, train_masks, test, test_masks, classes=3, steps=20, keep=len(test))
    truth, said = np.stack(test_masks).ravel(), np.stack(result.predictions).ravel()
    scored = truth != 255
    expected = jaccard_score(truth[scored], said[scored], average=None, labels=[0, 1, 2])
    assert list(result.iou.values()) == pytest.approx(list(expected))
    assert result.miou == pytest.approx(expected.mean())
    assert result.pixel_accuracy == pytest.approx((truth == said)[scored].mean())


def test_confusion_matrix_equals_scikit_learn():
    rng = np.random.default_rng(0)
    mask, said = rng.integers(0, 4, (9, 7)).astype(np.uint8), rng.integers(0, 4, (9, 7)).astype(np.uint8)
    mask[0] = 255
    expected = public_confusion(mask[1:].ravel(), said[1:].ravel(), labels=[0, 1, 2, 3])
    assert (confusion_matrix(said, mask, 4) == expected).all()


def test_planted_features_are_read_off_and_noise_is_not():
    train, train_masks = scenes(2)
    test, test_masks = scenes(3)
    good = segmentation_probe(train, train_masks, test, test_masks, classes=3, steps=120)
    noise = np.random.default_rng(0).normal(size=test.shape).astype(np.float32)
    bad = segmentation_probe(noise[: len(train)], train_masks, noise, test_masks, classes=3, steps=120)
    assert good.miou > 0.7  # bilinear borders between cells of 8 pixels cannot all be right
    assert bad.miou < 0.35


def test_pixels_not_scored_have_no_influence():
    train, train_masks = scenes(4)
    test, test_masks = scenes(5)
    for mask in train_masks:
        mask[8:16] = 255
    base = segmentation_probe(train, train_masks, test, test_masks, classes=3, steps=30)
    other = [np.where(np.arange(32)[:, None] >= 24, 255, mask).astype(np.uint8) for mask in test_masks]
    cut = segmentation_probe(train, train_masks, test, other, classes=3, steps=30, keep=1)
    full = segmentation_probe(train, train_masks, test, test_masks, classes=3, steps=30, keep=1)
    assert (cut.predictions[0] == full.predictions[0]).all()  # the head is fitted on train masks alone
    assert base.miou == full.miou != cut.miou


def test_masks_of_different_sizes_and_absent_classes():
    train, train_masks = scenes(6, size=(32, 32))
    more, more_masks = scenes(7, size=(20, 44))
    test, test_masks = scenes(8, size=(24, 40))
    result = segmentation_probe(
        np.concatenate([train, more]), [*train_masks, *more_masks], test, test_masks, classes=5, steps=60, keep=2
    )
    assert set(result.iou) == {0, 1, 2}
    assert [prediction.shape for prediction in result.predictions] == [(24, 40)] * 2


def test_equal_seeds_give_equal_results():
    train, train_masks = scenes(9, noise=1.0)
    first, second = (
        segmentation_probe(train, train_masks, train, train_masks, classes=3, steps=15, seed=4) for _ in range(2)
    )
    assert (first.miou, first.iou) == (second.miou, second.iou)
