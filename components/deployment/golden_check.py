"""Does a served model give the embeddings that were recorded when it was registered, and fast enough?"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from components.registration.golden import largest_difference, read_golden
from foundry.errors import UserError
from serving.client import EmbeddingClient, RefusedImage


@dataclass(frozen=True)
class GoldenCheck:
    """The golden images of one version and how far a served model may be from them."""

    folder: Path
    """See :func:`components.registration.golden.read_golden`."""
    tolerance: float
    """Relative to the largest value of the recorded embedding, or to 1 where that is larger."""

    def differences(self, url: str, model: str, version: int) -> dict[str, float]:
        """For each golden image the difference of the served embedding to the recorded one.

        Raises :class:`UserError` naming the images that are refused or differ by more than the tolerance.
        """
        golden, images, expected = read_golden(self.folder)
        found: dict[str, float] = {}
        wrong: list[str] = []
        with EmbeddingClient(url, model, version) as client:
            for entry, row, answer in zip(golden.images, expected, client.embed_each(images), strict=True):
                if isinstance(answer, RefusedImage):
                    wrong.append(f"{entry.file} is refused ({answer})")
                    continue
                difference = largest_difference(answer.embedding[0], row)
                found[entry.file] = difference
                if not difference <= self.tolerance:
                    wrong.append(f"{entry.file} differs by {difference:.2e}")
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise UserError(
                f"model '{model}' version {version}: {len(wrong)} of {len(images)} golden images do not give the "
                f"recorded embedding (allowed {self.tolerance:.0e}): {'; '.join(wrong[:3])}{more}"
            )
        return found


@dataclass(frozen=True)
class LatencyBudget:
    """How long one image may take, measured with the golden images of a version."""

    folder: Path
    milliseconds: float
    """Bound of the median."""
    rounds: int = 3
    """How often every golden image is asked for; each counts with its fastest answer."""

    def check(self, url: str, model: str, version: int) -> float:
        """The median, milliseconds, of golden images asked one at a time. Raises :class:`UserError` above the bound."""
        _, images, _ = read_golden(self.folder)
        times: list[list[float]] = [[] for _ in images]
        with EmbeddingClient(url, model, version) as client:
            for _ in range(self.rounds):
                for image, found in zip(images, times, strict=True):
                    start = time.perf_counter()
                    client.embed([image])
                    found.append(1000 * (time.perf_counter() - start))
        median = statistics.median(min(found) for found in times)
        if median > self.milliseconds:
            raise UserError(
                f"model '{model}' version {version}: too slow, one golden image takes {median:.1f} ms (median), "
                f"{self.milliseconds:g} ms are allowed (deployment.latency_budget_ms)"
            )
        return median
