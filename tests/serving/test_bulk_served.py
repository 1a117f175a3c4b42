"""2,000 images through the real server: what the same network gives in this process, in order, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from serving.installation import serving_environment
from serving.model_config import ServingOptions
from serving.repository import ModelRepository
from serving.server import Ports, RunningServer, find_server, load_models, start_server, stop_server
from serving.triton_backend.embedding import EmbeddingModel
from tests.conftest import REPOSITORY
from tests.serving.tiny_models import encoded, picture

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("needs_triton")]
NAME = "bulk"
COUNT = 2000
BROKEN = (7, 1234)


@pytest.fixture
def repository(fresh_home: Path, tmp_path: Path, onnx) -> Iterator[ModelRepository]:  # type: ignore[no-untyped-def]
    repository = ModelRepository(tmp_path / "repository")
    repository.write_version("vit", 3, *onnx["vit"])
    repository.serve("vit", [3], ServingOptions(environment=serving_environment(), threads=1))
    yield repository
    stop_server(NAME, drain=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 small files in two folders; two of them are broken."""
    root = tmp_path_factory.mktemp("pictures")
    for index in range(COUNT):
        path = root / f"{index // 1000}" / f"{index:05d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image" if index in BROKEN else encoded(picture(index, 48, 40)))
    return root


def in_process(repository: ModelRepository, pictures: Path) -> np.ndarray:
    """float32 (2000, D) without a server; NaN for the broken ones."""
    model = EmbeddingModel(repository.root / "vit" / "3", threads=1)
    rows: list[np.ndarray] = []
    for path in sorted(pictures.rglob("*.jpg")):
        (pixels,) = model.decode([path.read_bytes()])
        rows.append(model.run(pixels[None], False)[0][0] if isinstance(pixels, np.ndarray) else np.full(64, np.nan))
    model.close()
    return np.stack(rows)


def answered(server: RunningServer) -> int:
    """Images that the server has embedded."""
    with urllib.request.urlopen(server.metrics_url) as response:
        lines = response.read().decode().splitlines()
    return sum(
        int(float(line.rsplit(" ", 1)[1]))
        for line in lines
        if line.startswith("foundry_serving_images_total") and 'outcome="ok"' in line
    )


def restart(server: RunningServer, repository: ModelRepository, *, drain: bool) -> None:
    stop_server(NAME, drain=drain)
    ports = Ports(server.http_port, server.grpc_port, server.metrics_port)
    assert load_models(start_server(repository.root, NAME, ports=ports), repository) == []


def kill_model_process(server: RunningServer, repository: ModelRepository) -> None:
    """The server stays up and answers 500 until someone loads the version anew."""
    tasks = Path(f"/proc/{server.process.partition(':')[0]}/task").iterdir()
    pids = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    repository.touch("vit", 3)
    server.control().load("vit")


@pytest.mark.parametrize(
    ("harm", "batch", "after_images"),
    [
        # A server that is told to stop still answers for seconds: a slow client keeps some images for the next one.
        (lambda server, repository: restart(server, repository, drain=True), 1, 50),
        (lambda server, repository: restart(server, repository, drain=False), 8, 500),
        (kill_model_process, 8, 500),
    ],
    ids=["restarted", "killed", "model process killed"],
)
def test_embed_survives_the_server(
    repository: ModelRepository,
    pictures: Path,
    tmp_path: Path,
    harm: Callable[[RunningServer, ModelRepository], None],
    batch: int,
    after_images: int,
) -> None:
    server = start_server(repository.root, NAME)
    assert load_models(server, repository) == []
    output = tmp_path / "vectors.parquet"
    command = [sys.executable, "-m", "serving", "embed", "--url", server.url, "--model", "vit", str(pictures)]
    command += ["--output", str(output), "--batch", str(batch), "--concurrency", "1" if batch == 1 else "4"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while answered(server) < after_images:
            assert process.poll() is None and time.monotonic() < deadline
        before = answered(server)
        assert before < COUNT - 200, "the harm comes in the middle"
        harm(server, repository)
        _, error = process.communicate(timeout=240)
    finally:
        process.kill()
        process.communicate()
    print(error)
    assert process.returncode == 3, error
    assert f"refused: {pictures}/0/00007.jpg: " in error and "the first of 2" in error

    table = parquet.read_table(output)
    assert table.column("path").to_pylist() == [str(path) for path in sorted(pictures.rglob("*.jpg"))]
    errors = table.column("error").to_pylist()
    assert tuple(index for index, reason in enumerate(errors) if reason) == BROKEN
    assert set(table.column("version").to_pylist()) == {3, None}
    vectors = np.stack(table.column("embedding").to_numpy())
    expected = in_process(repository, pictures)
    print(f"differs by {np.nanmax(np.abs(vectors - expected)):.1e}")
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    nearest = np.abs(expected[:100, None] - expected[None, :100]).max(axis=2) + np.eye(100) * 9
    assert np.nanmin(nearest) > 1e-4, "a row in another's place would not be seen"
    after = find_server(NAME)
    assert after is not None
    assert answered(after) - (before if after == server else 0) >= 200, "no image was left for the time after"


def test_a_killed_embed_goes_on(repository: ModelRepository, pictures: Path, tmp_path: Path) -> None:
    server = start_server(repository.root, NAME)
    assert load_models(server, repository) == []
    output = tmp_path / "vectors.npy"
    command = [sys.executable, "-m", "serving", "embed", "--url", server.url, "--model", "vit", str(pictures)]
    command += ["--output", str(output)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while answered(server) < 1200:
            assert process.poll() is None and time.monotonic() < deadline
    finally:
        process.kill()
        process.wait()
    assert not output.exists()
    before = answered(server)
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert again.returncode == 3 and "note: goes on after 10" in again.stderr, again.stderr
    assert answered(server) - before < COUNT - 1000
    np.testing.assert_allclose(np.load(output), in_process(repository, pictures), atol=1e-5)
