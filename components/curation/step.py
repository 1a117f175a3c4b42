"""Raw pool -> deduplicated, balanced, versioned shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.common.step import InputSpec, Step
from components.curation.config import TRANSIENT, CurationConfig
from components.curation.inputs import dataset_at_url


def run(config: CurationConfig, inputs: Mapping[str, str], output: Path) -> dict[str, Any]:
    """Curate ``inputs["pool"]`` into ``output``; returns counts and the content digest.

    With ``inputs["previous"]``, a curated dataset, what the pool has gained is added to it (:mod:`increment`), or the
    whole pool curated anew without measuring again and without what was deleted (:mod:`full`). Raises
    :class:`UserError` where the pool is absent, empty, damaged or holds no usable image, or the previous dataset cannot
    be used.
    """
    from components.curation.full import run_full
    from components.curation.increment import run_increment
    from components.curation.previous import open_previous
    from components.curation.selection import part_names

    part_names(config, inputs)
    url = inputs.get("previous")
    previous = open_previous(url, output / "work" / "previous") if url else None
    if previous and not config.anew:
        return run_increment(config, inputs, output, previous)
    return run_full(config, inputs, output, previous)


def _environment(config: CurationConfig) -> dict[str, Any]:
    """Facts that decide pixels and floating-point results."""
    from importlib.metadata import version

    from components.common.accelerator import accelerator_name, default_device

    embedding = config.embedding
    facts: dict[str, Any] = {name: version(name) for name in ("numpy", "pillow", "opencv-python-headless", "torch")}
    facts["device"] = embedding.device if embedding.device != "auto" else default_device()
    facts["accelerator"] = accelerator_name() if facts["device"] != "cpu" else None
    if embedding.bootstrap.enabled:
        from components.common.fingerprint import code_digest

        facts["recipe"] = embedding.bootstrap.resolved_recipe().model_dump(mode="json", exclude={"name", "about"})
        facts["training"] = code_digest(["training.__main__"])
    return facts


def _disk_bytes(config: CurationConfig, inputs: Mapping[str, str]) -> int:
    """About the size of a local pool and of datasets taken as they are, the work files and the index."""
    from foundry.storage import files_under, is_local, local_path

    total = 64 << 20
    for name, url in inputs.items():
        if not name.startswith(("pool", "raw.")) or not is_local(url) or not local_path(url).exists():
            continue
        path = local_path(url)
        sizes = [file.stat().st_size for file in (files_under(path) if path.is_dir() else [path])]
        total += sum(sizes) * (2 if config.embedding.bootstrap.enabled else 1) + 21_000 * len(sizes)
    return total


def _embeddings_digest(folder: str) -> str:
    """What names given embeddings; the step reads them from a local folder."""
    from components.curation.embeddings import GivenEmbeddings
    from foundry.storage import local_path

    return GivenEmbeddings(local_path(folder)).digest()


def _pool_digest(url: str) -> str:
    """What names the pool: also its unreadable files, and what a list of URLs points to."""
    from components.curation.pool import pool_digest

    return pool_digest(url)


STEP = Step(
    name="curation",
    summary="Turn a raw pool of images into a deduplicated, balanced, versioned dataset of shards.",
    config=CurationConfig,
    inputs=(
        InputSpec(
            "pool",
            "images without labels: a folder, archive, WebDataset shards, Parquet or list of URLs; sample: is embedded",
            kind="url",
            digest=_pool_digest,
        ),
        InputSpec(
            "evaluation",
            "images that will measure the models (a labelled set or any pool), of which no copy is kept",
            required=False,
            kind="url",
            digest=_pool_digest,
        ),
        InputSpec(
            "backbone",
            "network whose embeddings tell concepts apart: a training run, a Hugging Face folder, models:/NAME@ALIAS",
            required=False,
            kind="model",
        ),
        InputSpec(
            "embeddings",
            "embeddings in place of a backbone: folder with vectors.npy and keys.npy (docs/data.md)",
            required=False,
            kind="url",
            digest=_embeddings_digest,
        ),
        InputSpec(
            "seeds",
            "images whose like are retrieved from the pool: a URL as for pool, or NAME=URL;NAME=URL",
            required=False,
            kind="url",
            digest=_pool_digest,
            several=True,
        ),
        InputSpec(
            "raw",
            "datasets that are taken as they are: a URL as for pool, or NAME=URL;NAME=URL",
            required=False,
            kind="url",
            digest=_pool_digest,
            several=True,
        ),
        dataset_at_url(
            "previous",
            "curated dataset of an earlier state of the pool, to add to: a folder, URL, dvc:// or PATH@REVISION",
            required=False,
        ),
    ),
    run=run,
    code=("components.curation.step", "components.curation.decode_worker", "components.common.report"),
    transient=TRANSIENT,
    environment=_environment,
    disk_bytes=_disk_bytes,
    shown=("report.html",),
    records=("report.html", "bootstrap/metrics.jsonl", "bootstrap/events.jsonl"),  # the dataset is the same without
)
