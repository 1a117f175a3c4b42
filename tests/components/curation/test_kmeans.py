from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from components.curation.compute import Compute
from components.curation.kmeans import Started, assigned, kmeans
from components.curation.lloyd import Lloyd
from components.curation.rows import Rows
from components.curation.scores import Table, tile_shape
from tests.components.curation.mixtures import distances, mixture

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("spherical", [False, True])
def test_the_result_is_a_fixed_point_of_lloyd(spherical: bool) -> None:
    points, _ = mixture(700, 9, 12)
    found = kmeans(points, 9, seed=3, iterations=200, spherical=spherical)
    table = distances(points, found.centroids)
    np.testing.assert_array_equal(found.assignment, table.argmin(axis=1))
    np.testing.assert_allclose(found.distance, table.min(axis=1), atol=1e-5)
    assert found.inertia == pytest.approx(table.min(axis=1).sum(), rel=1e-5)
    for number, centroid in enumerate(found.centroids):
        mean = points[found.assignment == number].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(centroid, mean / np.linalg.norm(mean) if spherical else mean, atol=1e-6)


def test_every_iteration_is_that_of_plain_lloyd_in_float64() -> None:
    points, _ = mixture(1500, 60, 16, spread=0.7)
    compute = Compute(threads=1, block_rows=128)
    theirs, before = points[:37].astype(np.float64), np.full(len(points), -1)
    with compute.workers() as run:
        ours = Lloyd(Rows(points), compute, run)
        ours.begin(torch.from_numpy(points[:37]))
        for _ in range(14):
            changed = ours.assign()
            nearest = distances(points, theirs).argmin(axis=1)
            np.testing.assert_array_equal(ours.assignment.numpy(), nearest)
            assert changed == (nearest != before).sum()
            np.testing.assert_allclose(ours.distances().numpy(), distances(points, theirs).min(axis=1), atol=1e-5)
            before = nearest
            ours.update()
            theirs = np.stack([points[nearest == number].mean(axis=0, dtype=np.float64) for number in range(37)])
            np.testing.assert_allclose(ours.centroids.numpy(), theirs, atol=1e-6)
            theirs = ours.centroids.numpy().astype(np.float64)  # so that rounding does not add up


@pytest.mark.parametrize("rows", [16, 37])
def test_the_nearest_centroid_is_the_first_of_the_nearest_whatever_the_tile(rows: int) -> None:
    generator = np.random.default_rng(0)
    centroids = generator.normal(size=(50, 9)).astype(np.float32)
    centroids[[7, 20, 49]] = centroids[3]
    x = np.concatenate([centroids, generator.normal(size=(rows, 9)).astype(np.float32)])[-rows:]
    x[0] = centroids[49]
    for columns in (50, 17, 3):
        found = Table(torch.from_numpy(centroids), 16, columns).nearest(torch.from_numpy(x))
        assert found[0] == 3
        np.testing.assert_array_equal(found.numpy(), distances(x, centroids).argmin(axis=1))


@pytest.mark.parametrize(("numbers", "clusters"), [(1 << 18, 1000), (1 << 18, 12), (1 << 18, 100_000), (64, 5000)])
def test_tiles_are_no_larger_than_allowed(numbers: int, clusters: int) -> None:
    rows, columns = tile_shape(numbers, 384, clusters, 4096)
    assert rows % 16 == 0 and 16 <= rows <= 4096 and 1 <= columns <= clusters
    assert rows == 16 or rows * max(columns, 385) <= numbers


def test_clear_clusters_are_found() -> None:
    points, labels = mixture(600, 12, 16, spread=0.05)
    found = kmeans(points, 12, seed=0)
    assert len(set(zip(labels.tolist(), found.assignment.tolist(), strict=True))) == 12


def test_inertia_is_as_good_as_scikit_learns() -> None:
    from sklearn.cluster import KMeans

    points, _ = mixture(800, 40, 16, spread=0.6)
    ours = np.mean([kmeans(points, 25, seed=seed).inertia for seed in range(4)])
    theirs = np.mean([KMeans(25, n_init=1, max_iter=50, random_state=seed).fit(points).inertia_ for seed in range(4)])
    assert ours <= theirs * 1.02


def test_results_are_equal_to_the_bit_for_any_number_of_threads() -> None:
    points, _ = mixture(1000, 20, 24, spread=0.8)
    results = [
        kmeans(points, 20, seed=5, iterations=8, compute=Compute(threads=threads, block_rows=128))
        for threads in (1, 2, 4)
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].centroids, other.centroids)
        np.testing.assert_array_equal(results[0].assignment, other.assignment)
        assert results[0].inertia == other.inertia


def test_sums_are_exact_in_whatever_order_and_over_rows_that_come_and_go() -> None:
    """The sums that an iteration leaves behind are those of the present members, not nearly but to the bit."""
    points, _ = mixture(1200, 50, 8, spread=0.9)
    points *= 1000
    compute = Compute(threads=2, block_rows=128)
    with compute.workers() as run:
        lloyd = Lloyd(Rows(points), compute, run)
        lloyd.begin(torch.from_numpy(points[:50]))
        for _ in range(6):
            lloyd.assign()
            lloyd.update()
        lloyd.assign()
    units = np.round(points.astype(np.float64) * lloyd._scale)
    assert 2.0**30 < np.abs(units).max() and np.abs(units).sum(axis=0).max() < 2.0**53
    expected = np.zeros((50, 8))
    np.add.at(expected, lloyd.assignment.numpy(), units)
    assert lloyd._sums is not None
    np.testing.assert_array_equal(lloyd._sums.numpy(), expected)


def test_the_seed_decides() -> None:
    points, _ = mixture(400, 30, 8, spread=1.0)
    one, same, other = (kmeans(points, 20, seed=seed, iterations=3) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.centroids, same.centroids)
    assert not np.array_equal(one.centroids, other.centroids)


def test_fewer_distinct_points_than_clusters() -> None:
    points = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    found = kmeans(points, 7, seed=0)
    assert found.inertia == 0
    assert found.centroids.shape == (7, 3)
    np.testing.assert_array_equal(found.centroids[found.assignment], points)


def test_an_empty_cluster_keeps_its_centroid() -> None:
    points, _ = mixture(300, 5, 6)
    start = np.concatenate([points[:5], np.full((1, 6), 40, np.float32)])
    compute = Compute(threads=1)
    with compute.workers() as run:
        lloyd = Lloyd(Rows(points), compute, run)
        lloyd.begin(torch.from_numpy(start))
        for _ in range(4):
            lloyd.assign()
            lloyd.update()
    assert (lloyd.assignment != 5).all()
    np.testing.assert_array_equal(lloyd.centroids[5].numpy(), start[5])


@pytest.mark.parametrize("clusters", [0, 5])
def test_impossible_numbers_of_clusters_are_refused(clusters: int) -> None:
    with pytest.raises(ValueError, match="cannot make"):
        kmeans(np.zeros((4, 2), np.float32), clusters, seed=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_points_that_cannot_be_clustered_are_refused(bad: float) -> None:
    points, _ = mixture(50, 5, 6)
    points[31, 2] = bad
    with pytest.raises(ValueError, match="finite"):
        kmeans(points, 3, seed=0)
    with pytest.raises(ValueError, match="floating-point"):
        kmeans(np.zeros((4, 2), np.int64), 2, seed=0)


def test_every_point_as_its_own_cluster() -> None:
    points, _ = mixture(12, 12, 6)
    assert kmeans(points, 12, seed=0).inertia == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_a_memory_map_and_chosen_rows_of_it_give_what_an_array_gives(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = mixture(900, 30, 16, spread=0.5)[0].astype(kind)
    np.save(tmp_path / "points.npy", points)
    mapped = np.load(tmp_path / "points.npy", mmap_mode="r")
    expected = kmeans(points.astype(np.float32), 12, seed=0, iterations=5)
    np.testing.assert_array_equal(kmeans(mapped, 12, seed=0, iterations=5).centroids, expected.centroids)
    rows = np.random.default_rng(0).permutation(900)[:400]
    expected = kmeans(points[rows].astype(np.float32), 12, seed=0, iterations=5)
    for held in (0, 1 << 20):  # read in each pass, or once
        monkeypatch.setattr(Compute, "held_bytes", held)
        found = kmeans(Rows(mapped, rows), 12, seed=0, iterations=5)
        np.testing.assert_array_equal(found.centroids, expected.centroids)
        np.testing.assert_array_equal(found.assignment, expected.assignment)


def test_tiles_smaller_than_the_centroids_give_the_same_clusters() -> None:
    points, _ = mixture(800, 40, 16, spread=0.3)
    expected = kmeans(points, 70, seed=0, iterations=6)
    found = kmeans(points, 70, seed=0, iterations=6, compute=Compute(memory=1 << 16))
    np.testing.assert_array_equal(found.assignment, expected.assignment)
    np.testing.assert_allclose(found.centroids, expected.centroids, atol=1e-6)


def test_a_clustering_goes_on_from_any_iteration_to_an_equal_result() -> None:
    points, _ = mixture(900, 60, 8, spread=0.7)
    states: list[Started] = []
    whole = kmeans(points, 30, seed=2, iterations=9, spherical=True, save=states.append)
    assert [state.iterations for state in states] == list(range(1, whole.iterations))
    for state in states:
        found = kmeans(points, 30, seed=2, iterations=9, spherical=True, resume=state)
        assert found.iterations == whole.iterations and found.inertia == whole.inertia
        np.testing.assert_array_equal(found.centroids, whole.centroids)
        np.testing.assert_array_equal(found.assignment, whole.assignment)


def test_given_centroids_stay() -> None:
    points, _ = mixture(500, 20, 8)
    centroids = points[::25].copy()
    found = assigned(points, centroids)
    np.testing.assert_array_equal(found.centroids, centroids)
    np.testing.assert_array_equal(found.assignment, distances(points, centroids).argmin(axis=1))


MEASURED = """
    import sys, threading, numpy as np
    from components.curation.compute import Compute
    from components.curation.kmeans import kmeans

    def private():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))

    points = np.load(sys.argv[1], mmap_mode="r")
    compute = Compute(threads=2, memory=int(sys.argv[2]))
    kmeans(points[:5000], 100, seed=0, iterations=2, compute=compute)  # what libraries set up once
    before, seen, over = private(), [], threading.Event()

    def watch():
        while not over.wait(0.002):
            seen.append(private())

    watcher = threading.Thread(target=watch)
    watcher.start()
    kmeans(points, 100, seed=0, iterations=3, compute=compute)
    over.set()
    watcher.join()
    print(max(seen) - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only /proc tells a process's own memory from mapped points"
)
def test_memory_is_bounded_by_the_setting_not_by_the_points(tmp_path: Path) -> None:
    rows, dimensions, memory = 80_000, 256, 8 << 20
    generator = np.random.default_rng(0)
    points = np.lib.format.open_memmap(tmp_path / "points.npy", "w+", np.float16, (rows, dimensions))
    for start in range(0, rows, 10_000):
        points[start : start + 10_000] = generator.normal(size=(10_000, dimensions)) / dimensions**0.5
    points.flush()
    command = [sys.executable, "-c", textwrap.dedent(MEASURED), str(tmp_path / "points.npy"), str(memory)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    seeding = 2 * 2048 * dimensions * 4 + 6 * 128 * 2048 * 4  # the sample, and distances of draws from it
    allowed = 2 * memory + 20 * rows + seeding
    assert int(done.stdout) < allowed < 4 * rows * dimensions / 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same_clusters() -> None:
    points, _ = mixture(5000, 40, 32, spread=0.3)
    expected = kmeans(points, 40, seed=0)
    results = [kmeans(points, 40, seed=0, compute=Compute(device="cuda")) for _ in range(2)]
    np.testing.assert_array_equal(results[0].centroids, results[1].centroids)
    assert results[0].inertia == pytest.approx(expected.inertia, rel=0.01)
