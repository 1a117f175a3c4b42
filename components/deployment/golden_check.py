"""Does a served model give the embeddings that were recorded when it was registered?"""

from __future__ import annotations

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
