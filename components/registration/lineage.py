"""From a registered version back to the pool: what the manifests of its inputs say, as tags."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from components.common.manifest import Manifest, read_manifest
from components.common.tracking import TAG_PREFIX
from foundry.errors import UserError
from foundry.home import REPOSITORY
from foundry.storage import sha256_of_file


def read_manifests(inputs: Mapping[str, str]) -> dict[str, Manifest]:
    """The manifest of every input, checked to belong together.

    The students must have been distilled from this teacher on this dataset, and the report must be about these
    students; else :class:`UserError`.
    """
    manifests = {}
    for name, folder in inputs.items():
        manifest = read_manifest(Path(folder))
        if manifest is None:
            raise UserError(f"{folder}: input '{name}' is no finished result of a step (it has no manifest.json)")
        manifests[name] = manifest
    for maker, made_from, given in (
        ("students", "teacher", "refined"),
        ("students", "dataset", "dataset"),
        ("report", "students", "students"),
        ("report", "refined", "refined"),
        ("report", "teacher", "refined"),
        ("report", "dataset", "dataset"),
    ):
        row = manifests[maker].inputs.get(made_from)
        if row is not None and row.digest != manifests[given].digest:
            raise UserError(
                f"input '{maker}' ({inputs[maker]}) was made from another {made_from} ({row.digest[:12]}) than the "
                f"given '{given}' ({manifests[given].digest[:12]}); give results of one line"
            )
    return manifests


def lineage_tags(manifests: Mapping[str, Manifest], inputs: Mapping[str, str]) -> dict[str, Any]:
    """Tags (without ``foundry.``) by which a version leads back: digests, fingerprints of all steps, Git, DVC, image.

    ``manifests`` as :func:`read_manifests` gives them for ``inputs``.
    """
    dataset, students = manifests["dataset"], manifests["students"]
    fingerprints: dict[str, str] = {}
    for manifest in manifests.values():
        for row in manifest.inputs.values():
            if row.step and row.fingerprint:
                fingerprints.setdefault(row.step, row.fingerprint)
    fingerprints |= {manifest.step: manifest.fingerprint for manifest in manifests.values()}
    recipe = Path(inputs["students"]) / "recipe.yaml"
    given = manifests["refined"].inputs.get("network")
    pool = dataset.inputs.get("pool")
    return {
        "fingerprint": {step: value for step, value in sorted(fingerprints.items())},
        "dataset_digest": dataset_digest(Path(inputs["dataset"])),
        "dataset_dvc_md5": dvc_md5("curation", dataset.fingerprint),
        "pool": pool.url if pool else None,
        "pool_digest": pool.digest if pool else None,
        "teacher": given.url if given else None,
        "teacher_digest": given.digest if given else None,
        "recipe_digest": sha256_of_file(recipe) if recipe.is_file() else None,
        "students_digest": students.digest,
        "report_digest": manifests["report"].digest,
        "git_commit": students.git.get("commit"),
        "git_dirty_digest": students.git.get("dirty_digest"),
        "code_digest": students.code_digest,
        "image": os.environ.get("FOUNDRY_IMAGE"),
    }


def dataset_digest(dataset: Path) -> str:
    """The content digest that names a curated dataset."""
    try:
        return str(json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))["digests"]["content"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{dataset}/dataset.json: not a readable description of a curated dataset ({error!r})"
        ) from None


def dvc_md5(step: str, fingerprint: str, repository: Path = REPOSITORY) -> str | None:
    """DVC's hash of ``artifacts/<step>`` where dvc.lock records it and the folder holds this very result, else None."""
    try:
        lock = yaml.safe_load((repository / "dvc.lock").read_text(encoding="utf-8"))
        manifest = read_manifest(repository / "artifacts" / step)
    except (OSError, yaml.YAMLError, UserError):
        return None
    if manifest is None or manifest.fingerprint != fingerprint or not isinstance(lock, dict):
        return None
    for stage in (lock.get("stages") or {}).values():
        for row in stage.get("outs") or ():
            if row.get("path", "").rstrip("/") == f"artifacts/{step}":
                return row.get("md5")
    return None


def record_dataset_revision(registered: Mapping[str, Mapping[str, Any]], md5: str) -> None:
    """Add DVC's hash of the dataset to versions that were registered before DVC knew it.

    ``registered`` is the ``students`` of ``registration.json``.
    """
    from components.common.mlflow_store import client

    registry = client()
    for row in registered.values():
        registry.set_model_version_tag(row["model"], row["version"], f"{TAG_PREFIX}dataset_dvc_md5", md5)
