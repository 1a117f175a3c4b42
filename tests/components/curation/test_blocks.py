from __future__ import annotations

import threading

import numpy as np
import pytest

from components.curation.blocks import by_blocks, fixed_blocks


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_blocks_cover_the_rows_in_order(threads: int) -> None:
    with fixed_blocks(23, 5, threads) as blocks:
        assert list(blocks(lambda span: (span.start, span.stop))) == [(0, 5), (5, 10), (10, 15), (15, 20), (20, 23)]


def test_results_keep_block_order_when_blocks_finish_in_another() -> None:
    second_is_done = threading.Event()

    def work(span: slice) -> np.ndarray:
        if span.start == 0:
            assert second_is_done.wait(30)
        else:
            second_is_done.set()
        return np.arange(span.start, span.stop)

    np.testing.assert_array_equal(by_blocks(work, 20, 10, threads=2), np.arange(20))


def test_few_results_wait_however_many_blocks() -> None:
    started = []
    with fixed_blocks(1000, 1, threads=2) as blocks:
        results = blocks(lambda span: started.append(span.start))
        next(iter(results))
        assert len(started) < 20
        list(results)
    assert len(started) == 1000


def test_an_error_in_a_block_reaches_the_caller() -> None:
    def work(span: slice) -> np.ndarray:
        raise ArithmeticError(span.start)

    with pytest.raises(ArithmeticError):
        by_blocks(work, 10, 3, threads=2)
