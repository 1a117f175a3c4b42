"""Clusterings and neighbours are equal to the bit for one, two and four processes."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest

from components.curation.compute import Compute
from tests.components.curation.mixtures import mixture
from tests.components.curation.share_of_clustering import BLOCK, main


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], dict[str, np.ndarray]]:
    """By number of processes and rank."""
    folder = tmp_path_factory.mktemp("processes")
    np.save(folder / "points.npy", mixture(7 * BLOCK - 70, 120, 12, spread=0.5)[0])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed"])  # imported once for all
    files = [str(folder / name) for name in ("rendezvous", "points.npy", "found")]
    running = [context.Process(target=main, args=(rank, 4, *files)) for rank in range(4)]
    for process in running:
        process.start()
    for process in running:
        process.join(240)
    codes = [process.exitcode for process in running]
    for process in running:
        process.kill()
    assert codes == [0] * 4
    found = {}
    for count, rank in ((1, 0), (2, 0), (2, 1), (4, 0), (4, 1), (4, 2), (4, 3)):
        with np.load(f"{folder}/found-{count}-{rank}.npz") as arrays:
            found[count, rank] = dict(arrays)
    return found


def test_results_are_equal_to_the_bit_for_any_number_of_processes(
    results: dict[tuple[int, int], dict[str, np.ndarray]],
) -> None:
    alone = results[1, 0]
    assert len(alone) == 23
    for (count, rank), found in results.items():
        assert found.keys() == alone.keys()
        for name in alone:
            np.testing.assert_array_equal(found[name], alone[name], err_msg=f"{name}, {rank} of {count}")


def test_the_results_are_worth_comparing(results: dict[tuple[int, int], dict[str, np.ndarray]]) -> None:
    found = results[1, 0]
    for spherical in ("False", "True"):
        assert len(np.unique(found[f"assignment {spherical}"])) > 35
        assert found[f"iterations {spherical}"] > 4
    assert not np.array_equal(found["assignment False"], found["assignment True"])
    assert len(found["centroids 0"]) == 60 and len(found["resampled centroids"]) == 30
    assert found["graph compared"] < 0.5, "lists were used"


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
def test_shares_are_whole_blocks_and_cover_all_rows(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compute, "processes", processes)
    block = Compute().block
    for rows in (1, block, 5 * block - 700, 3 * block + 1):
        covered = []
        for rank in range(processes):
            monkeypatch.setattr(Compute, "rank", rank)
            share = Compute().own_rows(rows)
            assert share.start % block == 0 or not share
            covered += list(share)
        assert covered == list(range(rows))
