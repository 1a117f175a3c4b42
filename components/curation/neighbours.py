"""The nearest others of every point by cosine: exact for few points, by inverted lists for many.

Points are put into lists by k-means. A point is compared with the members of those lists whose centroids are nearest to
it. How many lists that takes is measured: the true neighbours of some points, found by brute force, tell in which lists
neighbours lie. Where lists would save little, as for points without structure in many dimensions, all are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from components.curation.blocks import spans_of
from components.curation.compute import Compute, Run
from components.curation.kmeans import assigned, kmeans
from components.curation.rows import Rows

EXACT = 16384
"""Up to so many points all are compared with all."""
LISTS, TRAINED, ITERATIONS = 2, 64, 8
"""Lists for each square root of the number of points; points for each list that k-means is trained on, and how long."""
SAMPLE, MARGIN, SAVING = 1024, 0.75, 0.4
"""Points whose true neighbours are found to choose the number of lists; the share of the allowed misses that these may
have; and the share of comparisons from which on brute force is as quick."""
FIRST = 1024
"""Members of the lists around its own that a point is compared with at first."""
GROUP, ROWS, COLUMNS = 16384, 1024, 1024
"""Points that are searched for together at most, how many of these are compared at once, and with how many others in
brute force."""
PENDING, SORTED, PAIR = 1 << 21, 64, 32
"""Finds of a group that wait to be sorted; the bytes that sorting takes for each, and those of a point and a list that
are to be compared."""


@dataclass(frozen=True)
class Neighbours:
    """``index`` (n, count) int32, the others of falling similarity, -1 where there are no more; ``similarity``
    (n, count) float32, their cosine, -inf there; ``compared`` the share of all pairs that was compared."""

    index: np.ndarray
    similarity: np.ndarray
    compared: float


def neighbours(
    points: np.ndarray | Rows,
    count: int,
    *,
    recall: float = 0.99,
    least: float = -1.0,
    seed: int = 0,
    compute: Compute | None = None,
) -> Neighbours:
    """The ``count`` nearest others of each of ``points`` (n, d) of unit length that have a cosine of ``least`` or more.

    ``recall`` is the share of them to find, on average over points; 1 compares all with all. ``compute.memory`` bounds
    what one thread holds beside the result, the list of each point and the centroids. Processes share the work, each
    reading the rows that it compares, and get the whole result. Results are equal to the bit for any number of threads
    and processes. Runs on processors; only k-means uses a GPU.
    """
    rows = points if isinstance(points, Rows) else Rows(points)
    compute, count = compute or Compute(), max(0, min(count, len(rows) - 1))
    if not 0 < recall <= 1:
        raise ValueError(f"recall {recall}: give a share above 0 and up to 1")
    if not count:
        return Neighbours(np.zeros((len(rows), 0), np.int32), np.zeros((len(rows), 0), np.float32), 0.0)
    lists = None
    if len(rows) > EXACT and recall < 1:
        lists = _lists(rows, seed, compute)
    with compute.workers() as run:
        search = _Search(rows, count, least, compute, run)
        if lists is not None and (probes := search.chosen_probes(lists, recall, seed)):
            return search.by_lists(lists, probes)
        return search.brute_force()


@dataclass(frozen=True)
class _Lists:
    """``members`` (n,): the points, list by list; list j has those from ``first[j]`` to ``first[j + 1]``. ``centroids``
    (lists, d), neighbouring ones near each other in number."""

    members: np.ndarray
    first: np.ndarray
    centroids: Tensor

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(self.first)

    def of(self, number: int) -> np.ndarray:
        return self.members[self.first[number] : self.first[number + 1]]


def _lists(points: Rows, seed: int, compute: Compute) -> _Lists:
    """Lists of about the square root of the number of points, none much longer than the others."""
    count = min(int(LISTS * len(points) ** 0.5), len(points))
    generator = np.random.default_rng([seed, 0])
    trained = np.sort(generator.choice(len(points), min(len(points), TRAINED * count), replace=False))
    clustered = partial(kmeans, seed=seed, iterations=ITERATIONS, spherical=True, compute=compute)
    centroids = clustered(points.chosen(trained), count).centroids
    groups = clustered(centroids, int(len(centroids) ** 0.5)).assignment
    centroids = centroids[np.argsort(groups, kind="stable")]
    assignment = assigned(points, centroids, compute=compute).assignment
    members = np.argsort(assignment, kind="stable")
    sizes = np.bincount(assignment, minlength=len(centroids))
    longest = 4 * len(points) // count
    pieces = -(-sizes // longest)  # a long list, of copies for example, becomes several with one centroid
    own = np.repeat(np.arange(len(sizes)), pieces)
    place = np.arange(len(own)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = (np.cumsum(sizes) - sizes)[own] + place * longest
    return _Lists(members, np.append(starts, len(points)), torch.from_numpy(centroids)[torch.from_numpy(own)])


class _Group:
    """Points that are searched for together, and the best found for each of them."""

    def __init__(self, ids: np.ndarray, count: int, least: float, pending: int) -> None:
        self.ids = ids
        self._count, self._least, self._limit = count, np.float32(least), pending
        self.index = np.full((len(ids), count), -1, dtype=np.int32)
        self.similarity = np.full((len(ids), count), -np.inf, dtype=np.float32)
        self._needed = np.full(len(ids), np.nextafter(self._least, np.float32(-np.inf)), dtype=np.float32)
        self._pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._waiting = self.compared = 0

    def begin(self, places: slice, scores: np.ndarray, ids: np.ndarray) -> None:
        """The first others that the points of ``places`` are compared with: ``scores`` (r, m) of ``ids`` (m,)."""
        self.compared += scores.size
        found = np.broadcast_to(ids, scores.shape)
        if len(ids) > self._count:
            best = np.argpartition(scores, -self._count, axis=1)[:, -self._count :]
            scores, found = np.take_along_axis(scores, best, axis=1), ids[best]
        self.index[places, : scores.shape[1]] = found
        self.similarity[places, : scores.shape[1]] = scores
        self._needed[places] = np.maximum(self._needed[places], self.similarity[places].min(axis=1))

    def offer(self, places: np.ndarray, scores: np.ndarray, ids: np.ndarray) -> None:
        """More others: ``scores`` (r, m) of the points of ``places`` (r,) and ``ids`` (m,)."""
        self.compared += scores.size
        row, column = np.divmod(np.flatnonzero(scores > self._needed[places][:, None]), len(ids))
        if len(row):
            self._pending.append((places[row].astype(np.uint16), scores[row, column], ids[column].astype(np.int32)))
            self._waiting += len(row)
        if self._waiting > self._limit:
            self.settle()

    def settle(self) -> None:
        """Sort in what was found."""
        if not self._pending:
            return
        place, score, index = (np.concatenate(parts) for parts in zip(*self._pending, strict=True))
        self._pending, self._waiting = [], 0
        touched = np.flatnonzero(np.bincount(place, minlength=len(self.ids)))
        place = np.concatenate([np.repeat(touched.astype(np.uint16), self._count), place])
        score = np.concatenate([self.similarity[touched].ravel(), score])
        index = np.concatenate([self.index[touched].ravel(), index])
        order = np.argsort(-score)
        order = order[np.argsort(place[order], kind="stable")]
        sizes = np.bincount(place)[touched]
        kept = order[(np.cumsum(sizes) - sizes)[:, None] + np.arange(self._count)]
        self.similarity[touched], self.index[touched] = score[kept], index[kept]
        self._needed[touched] = np.maximum(self._needed[touched], score[kept[:, -1]])

    def finish(self) -> None:
        """Put the found in order, without those that are not similar enough."""
        self.settle()
        self.similarity[self.similarity < self._least] = -np.inf
        order = np.lexsort((self.index, -self.similarity))
        self.index = np.take_along_axis(self.index, order, axis=1)
        self.similarity = np.take_along_axis(self.similarity, order, axis=1)
        self.index[np.isneginf(self.similarity)] = -1


class _Search:
    """The parts of a search, which processes and threads share."""

    def __init__(self, points: Rows, count: int, least: float, compute: Compute, run: Run) -> None:
        self._points, self._count, self._least = points, count, least
        self._compute, self._run = compute, run

    def _group(self, ids: np.ndarray) -> _Group:
        return _Group(ids, self._count, self._least, min(PENDING, self._compute.memory // 2 // SORTED))

    def _group_size(self, each: int) -> int:
        """Points of a group, of which each needs ``each`` bytes beside its coordinates and neighbours."""
        per_point = 4 * self._points.dimensions + SORTED * self._count + each
        return int(np.clip(self._compute.memory // 2 // per_point, 64, GROUP))

    def brute_force(self) -> Neighbours:
        """Every point compared with every other."""

        def work(span: slice) -> _Group:
            group = self._group(np.arange(span.start, span.stop))
            self._compare_all(group)
            return group

        spans = spans_of(len(self._points), min(self._group_size(8 * COLUMNS), ROWS))
        return self._gathered(spans, work)

    def _compare_all(self, group: _Group) -> None:
        x = self._points.read(group.ids)
        for number, span in enumerate(spans_of(len(self._points), max(COLUMNS, self._count + 1))):
            others = self._points.read(span).clone()  # aligned as torch has it, wherever the caller's array lies
            scores = torch.mm(x, others.T).numpy()
            ids = np.arange(span.start, span.stop)
            own = np.flatnonzero((group.ids >= span.start) & (group.ids < span.stop))
            scores[own, group.ids[own] - span.start] = -np.inf
            if number:
                group.offer(np.arange(len(x)), scores, ids)
            else:
                group.begin(slice(0, len(x)), scores, ids)
        group.finish()

    def _gathered(self, spans: list[slice], work: Callable[[slice], _Group]) -> Neighbours:
        """The results of all processes' groups."""
        count = len(self._points)
        index = np.zeros((count, self._count), dtype=np.int32)
        similarity = np.zeros((count, self._count), dtype=np.float32)
        own, compared = self._compute.own(len(spans)), 0
        for group in self._run(work, spans[own.start : own.stop]):
            index[group.ids], similarity[group.ids] = group.index, group.similarity
            compared += group.compared
        for array in (index, similarity):
            self._compute.sum(torch.from_numpy(array))  # each row comes from one process; the others have 0
        pairs = int(self._compute.sum(torch.tensor([compared])).item())
        return Neighbours(index, similarity, pairs / count**2)

    def chosen_probes(self, lists: _Lists, recall: float, seed: int) -> int:
        """With how many lists a point is compared so that ``recall`` of the neighbours of some points are found; 0
        where that are most of the lists."""
        generator = np.random.default_rng([seed, 1])
        ids = np.sort(generator.choice(len(self._points), min(SAMPLE, len(self._points)), replace=False))
        list_of = np.empty(len(self._points), dtype=np.int64)
        list_of[lists.members] = np.repeat(np.arange(len(lists.sizes)), lists.sizes)
        # how many neighbours have so many lists nearer than their own; members of so many nearest lists, of all points
        nearer = torch.zeros(len(lists.sizes) + 1, dtype=torch.int64)
        before = torch.zeros(len(lists.sizes), dtype=torch.int64)
        spans = spans_of(len(ids), 128)
        own = self._compute.own(len(spans))

        def work(span: slice) -> tuple[Tensor, Tensor]:
            group = self._group(ids[span])
            self._compare_all(group)
            scores = torch.mm(self._points.read(group.ids), lists.centroids.T).numpy()
            order = np.argsort(-scores, axis=1, kind="stable")
            rank = np.empty_like(order)
            np.put_along_axis(rank, order, np.arange(order.shape[1])[None], axis=1)
            ranks = np.take_along_axis(rank, list_of[group.index], axis=1)[group.index >= 0]
            counts = np.bincount(ranks, minlength=len(nearer))
            return torch.from_numpy(counts), torch.from_numpy(np.cumsum(lists.sizes[order], axis=1).sum(axis=0))

        for counts, members in self._run(work, spans[own.start : own.stop]):
            nearer += counts
            before += members
        found = self._compute.sum(nearer).cumsum(0).double() / nearer.sum().clamp(min=1)
        probes = 1 + int((found < 1 - (1 - recall) * MARGIN).sum())
        if probes >= len(lists.sizes):
            return 0
        share = float(self._compute.sum(before)[probes - 1]) / len(ids) / len(self._points)
        return probes if share < SAVING else 0

    def by_lists(self, lists: _Lists, probes: int) -> Neighbours:
        """Every point compared with the members of the lists around its own and of the ``probes`` nearest to it."""

        def work(span: slice) -> _Group:
            group = self._group(lists.members[span])
            x = self._points.read(group.ids)
            list_of = np.searchsorted(lists.first, np.arange(span.start, span.stop), side="right") - 1
            around = {}
            for number in np.unique(list_of).tolist():
                around[number] = self._around(lists, number)
                members = slice(*np.searchsorted(list_of, [number, number + 1]))
                self._compare_around(group, x, members, span.start - int(lists.first[number]), lists, around[number])
            for places, numbers in self._pairs(x, list_of, around, lists, probes):
                self._compare_pairs(group, x, places, numbers, lists)
                group.settle()
            group.finish()
            return group

        return self._gathered(spans_of(len(self._points), self._group_size(PAIR * probes)), work)

    def _around(self, lists: _Lists, number: int) -> np.ndarray:
        """The numbers of a list and of those with the nearest centroids, together of enough members to begin with."""
        nearness = torch.mv(lists.centroids, lists.centroids[number]).numpy()
        nearness[number] = np.inf
        order = np.argsort(-nearness, kind="stable")
        enough = np.searchsorted(np.cumsum(lists.sizes[order]), max(FIRST, 2 * self._count))
        return order[: int(enough) + 1]

    def _compare_around(
        self, group: _Group, x: Tensor, places: slice, skipped: int, lists: _Lists, around: np.ndarray
    ) -> None:
        """Begin with a list's members at ``places``, of which ``skipped`` and the first is the first of ``around``."""
        ids = np.concatenate([lists.of(number) for number in around])
        others = self._points.read(ids).T
        for start in range(places.start, places.stop, ROWS):
            part = slice(start, min(start + ROWS, places.stop))
            scores = torch.mm(x[part], others).numpy()
            scores[np.arange(len(scores)), skipped + np.arange(part.start, part.stop)] = -np.inf
            group.begin(part, scores, ids)

    def _pairs(
        self, x: Tensor, list_of: np.ndarray, around: dict[int, np.ndarray], lists: _Lists, probes: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places and lists to compare, by list: first the nearest quarter, so that few finds of the rest count."""
        found: tuple[list[tuple[np.ndarray, np.ndarray]], ...] = ([], [])
        kind = np.uint16 if len(lists.sizes) <= 1 << 16 else np.uint32  # the smaller is sorted several times as fast
        for span in spans_of(len(x), ROWS):
            scores = torch.mm(x[span], lists.centroids.T).numpy()
            falling = -np.partition(-scores, (probes - 1, max(0, probes // 4 - 1)), axis=1)
            taken = scores >= falling[:, probes - 1 : probes]
            for own in np.unique(list_of[span]).tolist():
                members = slice(*np.searchsorted(list_of[span], [own, own + 1]))
                taken[members, around[own]] = False
            place, number = np.divmod(np.flatnonzero(taken), taken.shape[1])
            near = scores[place, number] >= falling[place, max(0, probes // 4 - 1)]
            for some, wanted in zip(found, (near, ~near), strict=True):
                some.append((place[wanted] + span.start, number[wanted].astype(kind)))
        for some in found:
            places, numbers = (np.concatenate(parts) for parts in zip(*some, strict=True))
            order = np.argsort(numbers, kind="stable")
            yield places[order], numbers[order]

    def _compare_pairs(self, group: _Group, x: Tensor, places: np.ndarray, numbers: np.ndarray, lists: _Lists) -> None:
        """Compare the points at ``places`` with the members of the lists ``numbers``, which rise."""
        edges = np.flatnonzero(np.diff(numbers.astype(np.int64), prepend=-1, append=-1))
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            ids = lists.of(int(numbers[start]))
            others = self._points.read(ids).T
            for some in np.split(places[start:stop], range(ROWS, stop - start, ROWS)):
                group.offer(some, torch.mm(x[torch.from_numpy(some)], others).numpy(), ids)
