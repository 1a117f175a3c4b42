import pickle

import numpy as np
import pytest

from training.data.sampler import MixedOrders, OneOrder, Order, StepSampler, share


def test_each_pass_is_a_permutation_and_passes_differ():
    order = Order(17, seed=3)
    first, second = order.indices(0, 17), order.indices(17, 17)
    assert sorted(first) == sorted(second) == list(range(17))
    assert not np.array_equal(first, second)


def test_any_window_is_the_same_part_of_one_endless_order():
    whole = Order(11, seed=5).indices(0, 60)
    for start, count in [(0, 1), (9, 5), (10, 23), (33, 27)]:
        assert np.array_equal(Order(11, seed=5).indices(start, count), whole[start : start + count])


def test_seed_changes_the_order():
    assert not np.array_equal(Order(50, seed=1).indices(0, 50), Order(50, seed=2).indices(0, 50))


def test_weights_decide_how_often_an_image_appears():
    weights = np.array([4.0, 2.0, 1.0, 1.0])
    drawn = Order(4, seed=0, weights=weights).indices(0, 4000)
    frequency = np.bincount(drawn, minlength=4) / 4000
    assert np.allclose(frequency, weights / weights.sum(), atol=0.02)


def test_order_survives_pickling():
    order = Order(9, seed=1)
    order.indices(0, 3)
    assert np.array_equal(pickle.loads(pickle.dumps(order)).indices(0, 30), order.indices(0, 30))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_shares_cover_the_batch_once_in_order(world):
    slots = [slot for rank in range(world) for slot in share(16, rank, world)]
    assert slots == list(range(16))


def test_processes_and_restarts_see_one_order():
    def places(world: int, start: int) -> dict[tuple[int, int], int]:
        seen = {}
        for rank in range(world):
            sampler = StepSampler(OneOrder(Order(10, seed=4), 8), share(8, rank, world), start, 6)
            assert len(sampler) == 6 - start
            seen |= {(step, slot): image for batch in sampler for step, slot, image in batch}
        return seen

    whole = places(1, 0)
    assert places(2, 0) == whole == places(4, 0)
    assert places(2, 3) == {place: image for place, image in whole.items() if place[0] >= 3}


def mixed(batch=4):
    members = [np.arange(5), np.arange(5, 12)]
    return MixedOrders([Order(5, seed=1), Order(7, seed=1)], members, [1.0, 9.0], batch, seed=6)


def test_steps_of_a_mixture_are_of_one_kind_in_the_wanted_shares():
    steps = mixed()
    kinds = np.array([steps.kind(step) for step in range(6000)])
    assert abs((kinds == 0).mean() - 0.1) < 0.015
    for step in range(40):
        taken = steps.images(step, range(4))
        assert set(taken) <= set(range(5) if kinds[step] == 0 else range(5, 12))


def test_each_kind_counts_through_its_own_order_whatever_the_division_and_restart():
    whole = mixed()
    rows = [whole.images(step, range(4)) for step in range(300)]
    first = np.concatenate([row for step, row in enumerate(rows) if whole.kind(step) == 0])
    assert np.array_equal(first, Order(5, seed=1).indices(0, len(first)))
    late = mixed()
    assert np.array_equal(late.images(299, range(2, 4)), rows[299][2:])
