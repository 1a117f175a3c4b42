"""Champions as files: for the evaluation, which judges students against them, and for the deployment."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.common.manifest import FileRow, content_digest_of
from components.common.mlflow_store import default_address, plain_address_errors
from components.registration.config import RegistrationConfig
from components.registration.registry import ModelRegistry, describe_version
from foundry.errors import UserError
from foundry.home import home
from foundry.settings import load_settings
from foundry.storage import files_under, sha256_of_file, write_atomically

VERSION_FILE = "version.json"
"""Written last into a downloaded version; what :func:`components.registration.registry.describe_version` gives."""


def default_destination() -> Path:
    """Where champions are downloaded to on this machine."""
    return home() / "cache" / "champions"


class ChangedFiles(UserError):
    """The registry's files of a version are not those that were registered."""


@dataclass(frozen=True)
class DownloadedVersion:
    """The files of one registered version on this machine, checked against its digest."""

    folder: Path
    """The whole MLflow model; ``mlflow.pyfunc.load_model(folder)`` works."""
    metadata: Mapping[str, Any]
    """model, version, aliases, run_id, model_id, digest and tags (without ``foundry.``)."""

    @property
    def export(self) -> Path:
        """The network: model.safetensors, config.json, preprocessor_config.json (Hugging Face layout)."""
        return self.folder / "artifacts" / "export"

    @property
    def golden(self) -> Path:
        """Golden images, see :func:`components.registration.golden.read_golden`."""
        return self.folder / "artifacts" / "golden"


def download_version(
    model: str, version: str, destination: Path, *, registry: ModelRegistry | None = None
) -> DownloadedVersion:
    """The files of a version (number or alias) in ``<destination>/<model>-v<number>``; taken from there if complete.

    Raises :class:`UserError` for an unknown model or version, and :class:`ChangedFiles` where the registry's files do
    not have the digest that was recorded when they were registered.
    """
    from mlflow.artifacts import download_artifacts

    registry = registry or ModelRegistry()
    metadata = describe_version(registry.version(model, version))
    folder = destination / f"{model}-v{metadata['version']}"
    found = DownloadedVersion(folder, metadata)
    if _digest_recorded_in(folder) == metadata["digest"] != "":
        return found
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination, prefix=f".{folder.name}-") as scratch:
        partial = Path(scratch) / "model"
        partial.mkdir()
        with plain_address_errors(registry.uri), default_address(registry.uri):
            download_artifacts(
                artifact_uri=f"models:/{model}/{metadata['version']}", dst_path=str(partial), tracking_uri=registry.uri
            )
        digest = folder_digest(partial / "artifacts" / "export")
        if digest != metadata["digest"]:
            raise ChangedFiles(
                f"registered model '{model}' version {metadata['version']}: its files have digest {digest[:12]}, but "
                f"{metadata['digest'][:12] or 'none'} was registered; they were changed, register the student again"
            )
        write_atomically(partial / VERSION_FILE, json.dumps(metadata, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return found


def resolve_champions(
    prefix: str,
    students: Iterable[str] | Mapping[str, str],
    destination: Path,
    *,
    registry: ModelRegistry | None = None,
) -> dict[str, dict[str, str]]:
    """The champion that each student is to be judged against, as files: the evaluation's input ``champion``.

    ``students`` are names, or names with the digests of their exports (:func:`export_digests`). Given the digests, a
    student that is itself the champion is judged against the champion it replaced: so a repeated line asks the same
    question again, and finds the same answer in the store.

    Returns ``{student: {"model", "version", "digest", "path"}}``, path being an export folder; students without a
    champion are left out.
    """
    registry = registry or ModelRegistry()
    digests = students if isinstance(students, Mapping) else {}
    champions = {}
    for student in students:
        model = f"{prefix}-{student}"
        number = registry.champion(model)
        if number is not None and describe_version(registry.version(model, number))["digest"] == digests.get(student):
            number = registry.previous_champion(model)
        if number is None:
            continue
        version = download_version(model, number, destination, registry=registry)
        champions[student] = {
            "model": model,
            "version": number,
            "digest": str(version.metadata["digest"]),
            "path": str(version.export),
        }
    return champions


def champions_for_students(config: Mapping[str, Any], distillation: str) -> str:
    """JSON of :func:`resolve_champions` for the students of a distillation result, below the project's home.

    ``config`` is the section ``registration`` of params.yaml. Where there is no champion, ``{}``.
    """
    from components.registration.students import export_digests

    settings = load_settings(RegistrationConfig, config, "registration")
    digests = export_digests(Path(distillation))
    return json.dumps(resolve_champions(settings.prefix, digests, default_destination()), sort_keys=True)


def folder_digest(folder: Path) -> str:
    """Digest of a folder's files, as a step's manifest would give it."""
    return content_digest_of(
        FileRow(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=sha256_of_file(path))
        for path in files_under(folder)
    )


def _digest_recorded_in(folder: Path) -> str | None:
    try:
        recorded = json.loads((folder / VERSION_FILE).read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, KeyError):
        return None
    return recorded if folder_digest(folder / "artifacts" / "export") == recorded else None
