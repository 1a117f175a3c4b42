"""Settings of curation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_serializer, model_validator

from foundry.settings import Settings
from training.recipe import Mix, Recipe, load_recipe

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
    min_contrast: Annotated[float, Field(ge=0, le=16)] = 2.0
    """Standard deviation of the pixels (levels of 0..255, the largest of the three channels); below it an image is
    blank. 0 keeps blank images; above 16 it is not measured exactly."""


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
    close_difference: Annotated[float, Field(gt=0)] = 0.45
    """Largest difference of graphics, at 128 x 128 pixels, over the contrast around it: a letter or line is more."""


PASSES = 10


class Level(Settings):
    """One level of a hierarchy of clusters. Written as a number, it has so many clusters and the rest as here."""

    clusters: Positive
    """Clusters; there are no more than points of the level, and empty ones are dropped."""
    resampled: Annotated[int, Field(ge=0)] = 0
    """Members nearest to its centroid that every cluster gives to a resampling pass; about half of the mean size is
    usual. 0: no resampling."""
    passes: Annotated[int, Field(ge=1)] = PASSES
    """Resampling passes after the first clustering."""
    splits: Positive = 1
    """Above 1, for very many clusters: ``clusters / splits`` are made first, and each is then split in so many."""

    @model_validator(mode="after")
    def _consistent(self) -> Level:
        if self.splits > 1 and self.resampled:
            raise ValueError("a level is either resampled or split")
        if self.splits > self.clusters:
            raise ValueError(f"{self.splits} splits of {self.clusters} clusters: give at most as many")
        if self.passes != PASSES and not self.resampled:
            raise ValueError("passes need a number of members that are resampled")
        return self

    @model_serializer
    def _short(self) -> int | dict[str, int]:
        """The form that people write."""
        told = {
            name: value
            for name, field in type(self).model_fields.items()
            if (value := getattr(self, name)) != field.default
        }
        return told if len(told) > 1 else self.clusters

    @property
    def steps(self) -> int:
        """Clusterings that make the level."""
        return 1 + (self.passes if self.resampled else self.splits > 1)


class BootstrapConfig(Settings):
    """A small backbone trained on the pool itself first, where no backbone and no embeddings are given."""

    enabled: bool = False
    """Whether to train one; otherwise a descriptor made by hand stands in for it."""
    recipe: str = "laptop"
    """Name of a recipe in training/recipes, or a YAML file. Its crops and patches grow with the images of the pool."""
    overrides: dict[str, Any] = {}
    """Changes to the recipe, nested as in its file; they also overrule what follows from the pool."""

    def resolved_recipe(self) -> Recipe:
        """The recipe with the overrides, before it is fitted to a pool. Raises :class:`UserError` for a wrong one."""
        return load_recipe(self.recipe, self.overrides)


class EmbeddingConfig(Settings):
    """What concepts are told apart by, where a backbone or embeddings are given."""

    bootstrap: BootstrapConfig = BootstrapConfig()
    """A small backbone trained on the pool itself first, where no backbone and no embeddings are given."""
    dtype: Literal["float16", "float32"] = "float16"
    """Numbers that embeddings are kept in."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs; auto: on a GPU where there is one."""
    processes: Annotated[int, Field(ge=0)] = 0
    """Processes that embed; 0: one for each core, or one where there is a GPU. The result does not depend on it."""
    fan_out: Annotated[int, Field(ge=0)] = 0
    """Pods that embed the pool side by side before curation on a cluster; 0: curation embeds it itself."""


class RetrievalConfig(Settings):
    """How the pool's images that are like those of a seed set are found (Oquab et al. 2023, appendix A)."""

    mode: Literal["sample", "cluster"] = "sample"
    """sample: the nearest images of every seed, for large seed sets. cluster: images of the clusters that seeds fall
    into, for small ones."""
    neighbours: Positive = 4
    """Sample mode: images for each seed. An image that several seeds ask for goes to the nearest of them, and the
    others take their next nearest."""
    clusters: Positive = 100_000
    """Cluster mode: clusters that the pool is divided into. A small pool gets fewer: at least 8 images for each."""
    min_hits: Positive = 4
    """Cluster mode: seeds that must fall into a cluster for it to be kept."""
    images: Positive = 10_000
    """Cluster mode: images drawn from a kept cluster at most."""
    limit: Positive = 1_000_000
    """Images for the whole seed set at most: the nearest ones (sample), or drawn by chance (cluster)."""


class ClusterConfig(Settings):
    """The hierarchy of concepts that balancing works on."""

    levels: tuple[Level, ...] = (Level(clusters=64), Level(clusters=12))
    """Clusters of each level, finest first. A small pool gets fewer: at least 8 images, or 3 clusters, for each.
    In place of a number, ``{clusters: 5000, resampled: 10, passes: 10}``: so many members of every cluster, the nearest
    to its centroid, are clustered again, so many times; or ``{clusters: 1000000, splits: 100}``: a hundredth as many
    are made first, and each is then split."""
    iterations: Positive = 50
    """Lloyd iterations at most."""
    spherical: bool = True
    """Whether centroids are put back on the unit sphere, on which the points lie."""
    components: Positive = 64
    """Principal components of the descriptor made by hand; embeddings of a backbone are clustered as they are."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where distances are computed."""
    processes: Positive = 1
    """Processes of this machine that share the clustering, each with a GPU of its own where the device is cuda. The
    result does not depend on it."""
    memory_mib: Annotated[int, Field(ge=16)] = 256
    """Memory that each thread may take for tables of distances and copies of points. A GPU is faster with thousands."""

    @field_validator("levels", mode="before")
    @classmethod
    def _numbers(cls, levels: Any) -> Any:
        if not isinstance(levels, (list, tuple)):
            return levels
        numbers = (int, float)
        return [
            {"clusters": level} if isinstance(level, numbers) and not isinstance(level, bool) else level
            for level in levels
        ]

    @field_validator("levels")
    @classmethod
    def _falling(cls, levels: tuple[Level, ...]) -> tuple[Level, ...]:
        counts = [level.clusters for level in levels]
        if not counts or counts != sorted(counts, reverse=True):
            raise ValueError("give at least one level, finest (largest) first, for example [64, 12]")
        return levels


class BalanceConfig(Settings):
    """How the dataset is drawn from the deduplicated images, evenly over the clusters of each level."""

    enabled: bool = True
    """Whether there is a balanced part; without it the dataset is what was retrieved and what is taken as it is."""
    fraction: Annotated[float, Field(gt=0)] = 0.9
    """Size of the dataset over the number of deduplicated images. 1 keeps all; more needs ``copies`` above 1."""
    size: Positive | None = None
    """Size of the dataset as a number, instead of ``fraction``."""
    copies: Positive = 1
    """How often an image of a rare concept may be drawn; its weight in the sampler is that number."""


TRANSIENT = ("decode.workers", "clusters.processes", "embedding.processes", "embedding.fan_out")
"""Settings that do not change the result."""


class CurationConfig(Settings):
    """Section ``curation`` of params.yaml."""

    decode: DecodeConfig = DecodeConfig()
    """Limits on each file, and the processes that decode."""
    filters: FilterConfig = FilterConfig()
    """Which decoded images are of use."""
    duplicates: DuplicateConfig = DuplicateConfig()
    """Which images count as copies of one picture."""
    embedding: EmbeddingConfig = EmbeddingConfig()
    """What concepts are told apart by."""
    clusters: ClusterConfig = ClusterConfig()
    """The hierarchy of concepts."""
    balance: BalanceConfig = BalanceConfig()
    """How the balanced part is drawn."""
    retrieval: RetrievalConfig = RetrievalConfig()
    """How images like those of the seed sets are found."""
    retrieval_of: dict[str, RetrievalConfig] = {}
    """The same for single seed sets, by their names, in place of ``retrieval``."""
    mix: Mix = Mix()
    """How the parts of the dataset (balanced, retrieved:NAME, raw:NAME) fill the steps of a training."""
    anew: bool = False
    """With a previous dataset: curate the whole pool, instead of adding to that dataset what the pool has gained. What
    was measured is not measured again, and what was deleted stays out."""
    shard_mib: Positive = 256
    """Size of a shard at most, where no single image is larger."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of clustering and drawing."""

    def lasting(self) -> dict[str, Any]:
        """The settings that the result depends on, as ``dataset.json`` has them."""
        settings = self.model_dump(mode="json", exclude={"anew"})
        for name in TRANSIENT:
            section, _, setting = name.partition(".")
            del settings[section][setting]
        return settings
