import numpy as np

from training.data.masks import block_mask, masked_counts, step_masks
from training.data.sampler import share
from training.recipe import Masks


def test_counts_are_the_upper_edges_of_equal_strata():
    counts = masked_counts(Masks(), crops=128, patches=196, seed=0, step=0)
    assert (counts == 0).sum() == 64
    expected = sorted(int(196 * (0.1 + 0.4 * (i + 1) / 64)) for i in range(64))
    assert np.allclose(
        sorted(counts[counts > 0]), expected, atol=1
    )  # a product that is an integer may round either way


def test_total_masked_patches_of_a_published_batch():
    # dino_facts section 3.3: batch 64 of 196 patches masks 3771 patches
    assert abs(int(masked_counts(Masks(), 128, 196, seed=1, step=7).sum()) - 3771) <= 2


def test_block_mask_has_exactly_the_wanted_patches():
    rng = np.random.default_rng(0)
    for grid, count in [(14, 98), (14, 19), (6, 18), (6, 3), (3, 4), (2, 2), (7, 24)]:
        for _ in range(20):
            assert block_mask(grid, count, rng).sum() == count


def test_masks_are_blocks_rather_than_scattered_patches():
    rng = np.random.default_rng(1)

    def neighbours(mask: np.ndarray) -> float:
        return float((mask[:, 1:] & mask[:, :-1]).sum() + (mask[1:] & mask[:-1]).sum()) / mask.sum()

    blocks = np.mean([neighbours(block_mask(14, 60, rng)) for _ in range(50)])
    scattered = []
    for _ in range(50):
        mask = np.zeros(196, bool)
        mask[rng.choice(196, 60, replace=False)] = True
        scattered.append(neighbours(mask.reshape(14, 14)))
    assert blocks > 1.8 * np.mean(scattered)


def test_division_of_the_batch_does_not_change_the_masks():
    whole = step_masks(Masks(), 8, range(8), 6, seed=2, step=5).reshape(2, 8, 36)
    for world in (2, 4):
        parts = [step_masks(Masks(), 8, share(8, r, world), 6, seed=2, step=5).reshape(2, -1, 36) for r in range(world)]
        assert np.array_equal(np.concatenate(parts, axis=1), whole)
    assert not np.array_equal(whole, step_masks(Masks(), 8, range(8), 6, seed=2, step=6).reshape(2, 8, 36))
