"""The vectors that images are compared by: of a backbone, given ones, or of the descriptor made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from components.curation.config import CurationConfig
from components.curation.sources import Source
from foundry.errors import UserError

if TYPE_CHECKING:
    from components.curation.embedding import Projection


class Space(Protocol):
    """Vectors of images of any source, all of one kind."""

    facts: dict[str, Any]
    """What they are, for dataset.json."""

    def vectors(self, source: Source, rows: np.ndarray) -> np.ndarray:
        """(m, d) float32 of unit length for the decoded images ``rows`` (m,), ascending, of ``source``."""
        ...


class DescriptorSpace:
    """By the descriptor made by hand, in the principal components of the images that are asked for first, or as a
    ``projection`` has them that was found before."""

    def __init__(self, components: int, projection: Projection | None = None) -> None:
        from components.curation.embedding import Descriptor

        self.facts: dict[str, Any] = {"kind": "descriptor", "components": components}
        self._descriptor = Descriptor(components, projection)

    @property
    def projection(self) -> Projection | None:
        """The principal components, once they are found."""
        return self._descriptor.projection

    def vectors(self, source: Source, rows: np.ndarray) -> np.ndarray:
        """See :class:`Space`."""
        return self._descriptor(source.scan.grey[rows], source.scan.colour[rows])


class BackboneSpace:
    """By the network in a folder of the Hugging Face layout.

    ``whole``: all images of a source are embedded, so that others find the parts and make them beforehand; else those
    that are asked for.
    """

    def __init__(self, config: CurationConfig, network: Path, kind: str, work: Path, whole: bool = True) -> None:
        from components.common.networks import network_digest

        self.facts: dict[str, Any] = {
            "kind": kind,
            "network": network_digest(network),
            "dtype": config.embedding.dtype,
        }
        self._config, self._network, self._work, self._whole = config, network, work, whole

    def vectors(self, source: Source, rows: np.ndarray) -> np.ndarray:
        """See :class:`Space`. The matrix is a file in the work folder, mapped into memory."""
        from components.curation.embeddings import PoolFiles, embed_pool

        scan = source.scan
        wanted = np.isin(np.arange(len(scan)), rows)
        if self._whole:
            wanted = np.array([not reason for reason in scan.reason], bool)
        files = PoolFiles(scan.sha256, wanted)
        folder = self._work / "-".join(filter(None, ["embed", source.name, source.label]))
        parts = embed_pool(self._config, source.pool, self._network, files, folder)
        return parts.take(rows, folder / "vectors.npy")


class GivenSpace:
    """By embeddings that somebody gives."""

    def __init__(self, folder: Path) -> None:
        from components.curation.embeddings import GivenEmbeddings

        self._given = GivenEmbeddings(folder)
        self.facts: dict[str, Any] = {"kind": "given", "embeddings": self._given.digest()}

    def vectors(self, source: Source, rows: np.ndarray) -> np.ndarray:
        """See :class:`Space`."""
        scan = source.scan
        return self._given.take([scan.sha256[row] for row in rows], [scan.path[row] for row in rows])


def given_space(config: CurationConfig, inputs: Mapping[str, str], work: Path, whole: bool = True) -> Space | None:
    """The space that the inputs name; None where they name none. ``whole``: see :class:`BackboneSpace`."""
    if inputs.get("embeddings") and inputs.get("backbone"):
        raise UserError("--input embeddings: takes the place of a backbone; leave one of them out")
    if folder := inputs.get("embeddings"):
        return GivenSpace(Path(folder))
    if network := inputs.get("backbone"):
        return BackboneSpace(config, Path(network), "backbone", work, whole)
    return None
