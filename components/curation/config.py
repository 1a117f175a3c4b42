"""Settings of curation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from foundry.settings import Settings

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class DecodeConfig(Settings):
    """What one file may cost. A file that asks for more is rejected with the reason; the run goes on."""

    max_bytes: Positive = 128 * 2**20
    """Encoded size of a file in bytes."""
    max_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = 2**26
    """Width x height."""
    max_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Processor time of decoding and measuring one file."""
    max_memory_mib: Annotated[int, Field(ge=64)] = 768
    """Memory of decoding one file, beyond what the idle worker has."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that decode; 0: one for each core. The result does not depend on it."""


class FilterConfig(Settings):
    """Which decoded images are of use."""

    min_side: Positive = 16
    """Shorter side in pixels."""
    max_aspect: Annotated[float, Field(ge=1)] = 10.0
    """Longer side over shorter side."""
    min_contrast: Annotated[float, Field(ge=0)] = 2.0
    """Standard deviation of the pixels (levels of 0..255, the largest of the three channels); below it an image is
    blank. 0 keeps blank images."""


class DuplicateConfig(Settings):
    """Which images count as copies of one picture. Equal bytes and equal pixels always do."""

    held_out: Literal["test", "all"] = "test"
    """Of an evaluation set, whose copies are left out: of the images that only measure (every split but train), or of
    all. A set without tables is held out whole."""
    near: bool = True
    """Find near duplicates too: re-encoded, resized, grey, brightened, captioned, framed, cropped, mirrored."""
    neighbours: Positive = 64
    """Candidates looked at for each image: its nearest ones by a descriptor that copies hardly change."""
    candidate_similarity: Share = 0.75
    """Correlation, at 12 x 12 pixels and the best of some windows, from which a candidate is aligned and compared."""
    photo_similarity: Share = 0.72
    """Mean correlation of the textured blocks of two aligned photographs from which they are one picture."""
    photo_agreement: Share = 0.70
    """Share of the texture of two aligned photographs that must agree."""
    graphic_similarity: Share = 0.88
    """The same for images with large flat areas (icons, charts, drawings): small differences carry the meaning."""
    graphic_agreement: Share = 0.97
    """The same for images with large flat areas."""
    middle_similarity: Share = 0.6
    """Mean correlation of the textured blocks away from the edges: a common frame is no common picture."""
    colour_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.6
    """Cosine of the aligned colour maps of two coloured images; below it they are recoloured variants, not copies."""


class ClusterConfig(Settings):
    """The hierarchy of concepts that balancing works on."""

    levels: tuple[Positive, ...] = (64, 12)
    """Clusters of each level, finest first. A small pool gets fewer: at least 8 images, or 3 clusters, for each."""
    iterations: Positive = 50
    """Lloyd iterations at most."""
    components: Positive = 64
    """Principal components of the descriptor that is clustered."""

    @field_validator("levels")
    @classmethod
    def _falling(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if not levels or list(levels) != sorted(levels, reverse=True):
            raise ValueError("give at least one level, finest (largest) first, for example [64, 12]")
        return levels


class BalanceConfig(Settings):
    """How the dataset is drawn from the deduplicated images, evenly over the clusters of each level."""

    fraction: Annotated[float, Field(gt=0)] = 0.9
    """Size of the dataset over the number of deduplicated images. 1 keeps all; more needs ``copies`` above 1."""
    size: Positive | None = None
    """Size of the dataset as a number, instead of ``fraction``."""
    copies: Positive = 1
    """How often an image of a rare concept may be drawn; its weight in the sampler is that number."""


class CurationConfig(Settings):
    """Section ``curation`` of params.yaml."""

    decode: DecodeConfig = DecodeConfig()
    """Limits on each file, and the processes that decode."""
    filters: FilterConfig = FilterConfig()
    """Which decoded images are of use."""
    duplicates: DuplicateConfig = DuplicateConfig()
    """Which images count as copies of one picture."""
    clusters: ClusterConfig = ClusterConfig()
    """The hierarchy of concepts."""
    balance: BalanceConfig = BalanceConfig()
    """How the dataset is drawn."""
    shard_mib: Positive = 256
    """Size of a shard at most, where no single image is larger."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of clustering and drawing."""


TRANSIENT = ("decode.workers",)
"""Settings that do not change the result."""
