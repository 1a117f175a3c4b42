"""Exports, their ONNX graphs and one Triton server for the tests of serving."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.export import OnnxExport, export_onnx
from serving.installation import serving_environment
from serving.model_config import ServingOptions
from serving.repository import ModelRepository
from serving.server import RunningServer, start_server, stop_server
from tests.serving.tiny_models import write_export

ARCHITECTURES = ("vit", "convnext")


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exports")
    return {name: write_export(folder / name, name) for name in ARCHITECTURES}


@pytest.fixture(scope="session")
def onnx(exports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, OnnxExport]]:
    folder = tmp_path_factory.mktemp("onnx")
    return {name: (folder / name, export_onnx(export, folder / name)) for name, export in exports.items()}


@pytest.fixture(scope="session")
def needs_triton() -> None:
    here = (platform.system(), platform.machine())
    if here != ("Linux", "x86_64"):
        pytest.skip(f"the embedded Triton server runs on Linux x86_64, this is {here[0]} {here[1]}")


@pytest.fixture(scope="session")
def served(
    needs_triton: None,
    session_home: Path,
    onnx: dict[str, tuple[Path, OnnxExport]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningServer]:
    """A server with the models ``vit`` and ``convnext``, version 1 each."""
    repository = ModelRepository(tmp_path_factory.mktemp("served") / "repository")
    options = ServingOptions(
        environment=serving_environment(),
        threads=1,
        max_batch_size=8,
        queue_delay_microseconds=20_000,
        max_image_bytes=200_000,
        max_image_pixels=1_000_000,
    )
    for name, source in onnx.items():
        repository.write_version(name, 1, *source)
        repository.serve(name, [1], options)
    server = start_server(repository.root, "tests")
    try:
        for name in onnx:
            server.control().load(name)
        yield server
    finally:
        stop_server("tests", drain=False)
