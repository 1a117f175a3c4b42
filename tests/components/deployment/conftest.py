"""Registered models for the tests of deployment: real versions in a real MLflow registry, with golden images."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.common import tracking
from components.registration.golden import EncodedImage, make_variants, write_golden
from components.registration.publishing import publish
from components.registration.registry import ModelRegistry
from components.registration.students import Student
from serving.server import running_servers, stop_server
from tests.serving.tiny_models import encoded, picture, write_export

MODELS = {"vit": 2, "convnext": 1}
"""Versions of each student; every one has other weights."""


def model_name(student: str) -> str:
    return f"deploy-{student}"


@pytest.fixture(scope="session")
def registry(session_home: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    """``deploy-vit`` versions 1 and 2, ``deploy-convnext`` version 1; no champion yet."""
    from components.registration.champions import folder_digest

    folder = tmp_path_factory.mktemp("registered")
    photograph = encoded(picture(11, 200, 160))
    images = [EncodedImage("sample-00", "jpeg", ".jpg", photograph, "key-0"), *make_variants(photograph, "key-0")]
    with tracking.step_run("registration", config={}, lineage={}) as run:
        registry = ModelRegistry()
        for student, versions in MODELS.items():
            for seed in range(versions):
                export = write_export(folder / f"{student}-{seed}", student, seed)
                version, new = publish(
                    registry,
                    run,
                    model_name(student),
                    Student(student, export, folder_digest(export)),
                    golden=lambda place, export=export: write_golden(place, lambda: images, export),
                    card="",
                    parameters={},
                    metrics={},
                    tags={},
                )
                assert new and int(version.version) == seed + 1
    return registry


@pytest.fixture
def registration(registry: ModelRegistry, tmp_path: Path) -> Path:
    """The result of registration: what was registered last."""
    students = {name: {"model": model_name(name), "version": str(count)} for name, count in MODELS.items()}
    folder = tmp_path / "registration"
    folder.mkdir()
    document = {"schema": 1, "tracking_uri": registry.uri, "students": students}
    (folder / "registration.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def champions(registry: ModelRegistry):  # type: ignore[no-untyped-def]
    """``champions(vit="1", ...)`` moves the aliases; they are taken away after the test."""

    def move(**versions: str) -> None:
        for student, version in versions.items():
            registry.client.set_registered_model_alias(model_name(student), "champion", version)

    yield move
    for student in MODELS:
        registry.client.delete_registered_model_alias(model_name(student), "champion")


@pytest.fixture(autouse=True)
def no_server_left() -> Iterator[None]:
    here = (platform.system(), platform.machine())
    if here != ("Linux", "x86_64"):
        pytest.skip(f"the embedded Triton server runs on Linux x86_64, this is {here[0]} {here[1]}")
    yield
    for server in running_servers():
        stop_server(server.name, drain=False)
