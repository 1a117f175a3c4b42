"""Inputs that are curated datasets, wherever they lie."""

from __future__ import annotations

from components.common.step import InputSpec


def _digest(url: str) -> str:
    from components.curation.previous import dataset_digest

    return dataset_digest(url)


def dataset_at_url(name: str, description: str, *, required: bool = True) -> InputSpec:
    """An input that is a curated dataset: a folder, a URL, ``dvc://...`` or ``PATH@REVISION``."""
    return InputSpec(name, description, required, kind="url", digest=_digest)
