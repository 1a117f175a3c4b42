"""A student becomes a version of its registered model: one for each exported network, however often one asks."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.common.fingerprint import code_digest
from components.common.mlflow_store import default_address, plain_address_errors
from components.common.tracking import TAG_PREFIX, TrackedRun, finite_scalars, flatten, tag_values
from components.registration.packaging import count_parameters, write_model
from components.registration.registry import CHALLENGER, EXPORT_DIGEST, LOGGED_MODEL, ModelRegistry
from components.registration.students import Student
from foundry.settings import digest_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_TAG_LIMIT = 5000
_PARAMETER_LIMIT = 250
_DESCRIPTION_LIMIT = 5000


def publish(
    registry: ModelRegistry,
    run: TrackedRun,
    model: str,
    student: Student,
    *,
    golden: Callable[[Path], object],
    card: str,
    parameters: Mapping[str, Any],
    metrics: Mapping[str, Any],
    tags: Mapping[str, Any],
) -> tuple[ModelVersion, bool]:
    """(version of ``model`` that holds ``student``, whether it is new); it gets the alias ``challenger``.

    Args:
        registry: where.
        run: the run that registers; the logged model belongs to it.
        model: name of the registered model; made where it is missing.
        student: what to register. Its digest is looked up first, with the code that makes its pixels: a network
            whose images would be decoded otherwise than before is another version, with golden embeddings of its own.
        golden: writes the golden images of the student into a folder; only called for a new version.
        card: model card, Markdown.
        parameters: settings shown with the model, nested.
        metrics: scores shown with the model, nested.
        tags: lineage of a new version, without ``foundry.``; an existing version keeps the lineage it was made with.
    """
    pixels = pixels_digest()
    known = registry.versions(model, (EXPORT_DIGEST, student.digest)) if registry.find_model(model) else []
    existing = [version for version in known if version.tags.get(f"{TAG_PREFIX}pixels_digest") == pixels]
    new = not existing
    if new:
        identity = {
            "student": student.name,
            "export_digest": student.digest,
            "pixels_digest": pixels,
            "parameters": count_parameters(student.export),
        }
        rows = tag_values({**tags, **identity}, _TAG_LIMIT)
        with tempfile.TemporaryDirectory(prefix="foundry-registration-") as scratch:
            golden_folder = Path(scratch) / "golden"
            golden_folder.mkdir()
            golden(golden_folder)
            version = _create(registry, run, model, student, golden_folder, card, parameters, metrics, rows, identity)
    else:
        version = existing[-1]
    with plain_address_errors(registry.uri):
        registry.client.set_registered_model_alias(model, CHALLENGER, version.version)
    return version, new


def pixels_digest() -> str:
    """Digest of what decides the pixels that a network sees: the code of ``foundry.images`` and Pillow's version."""
    return digest_of({"code": code_digest(("foundry.images",)), "pillow": importlib.metadata.version("pillow")})


def _create(
    registry: ModelRegistry,
    run: TrackedRun,
    model: str,
    student: Student,
    golden: Path,
    card: str,
    parameters: Mapping[str, Any],
    metrics: Mapping[str, Any],
    tags: Mapping[str, str],
    identity: Mapping[str, Any],
) -> ModelVersion:
    from mlflow.entities import LoggedModelOutput, Metric
    from mlflow.models import Model

    client = registry.client
    with plain_address_errors(registry.uri):
        logged = client.create_logged_model(
            run.experiment_id,
            name=model,
            source_run_id=run.run_id,
            tags=dict(tags),
            params=flatten(parameters, _PARAMETER_LIMIT),
            model_type="vision-backbone",
        )
    folder = golden.with_name("model")
    try:
        description = Model(
            artifact_path=logged.artifact_location,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
            run_id=run.run_id,
        )
        write_model(folder, description, export=student.export, golden=golden, card=card, metadata=identity)
        now = int(time.time() * 1000)
        scores = [
            Metric(f"{student.name}/{name}", value, now, 0, model_id=logged.model_id, run_id=run.run_id)
            for name, value in finite_scalars(metrics).items()
        ]
        with plain_address_errors(registry.uri):
            client.log_model_artifacts(logged.model_id, str(folder))
            client.log_outputs(run.run_id, [LoggedModelOutput(logged.model_id, step=0)])
            client.log_batch(run.run_id, metrics=scores)
            client.finalize_logged_model(logged.model_id, "READY")
    except BaseException:
        with contextlib.suppress(Exception):
            client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    with plain_address_errors(registry.uri), default_address(registry.uri):
        _ensure_model(registry, model, student.name)
        version = client.create_model_version(
            model,
            source=LOGGED_MODEL + logged.model_id,
            run_id=run.run_id,
            tags=dict(tags),
            description=card[:_DESCRIPTION_LIMIT],
            model_id=logged.model_id,
        )
        # By this tag MLflow's pages lead from the logged model to its version.
        versions = json.dumps([{"name": model, "version": version.version}])
        client.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": versions})
    return version


def _ensure_model(registry: ModelRegistry, model: str, student: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        registry.client.create_registered_model(
            model, tags=tag_values({"student": student}), description=f"Frozen vision backbone, student '{student}'."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
