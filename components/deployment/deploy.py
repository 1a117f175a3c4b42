"""The work of the step: champions of the registry, ONNX, the server, publication, and one real query of each model."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.deployment.config import DeploymentConfig
from components.deployment.golden_check import GoldenCheck, LatencyBudget
from components.deployment.publication import Published, clear_candidates, publish
from components.registration.champions import DownloadedVersion, default_destination, download_version
from components.registration.golden import read_golden
from components.registration.registry import ModelRegistry
from foundry.errors import UserError
from foundry.home import REPOSITORY, home
from foundry.progress import Progress
from foundry.storage import write_atomically
from serving.client import EmbeddingClient
from serving.export import OnnxExport, cached_export
from serving.installation import serving_environment
from serving.model_config import ServingOptions
from serving.repository import ModelRepository
from serving.server import DEFAULT_NAME, Ports, RunningServer, find_server, load_models, start_server, stop_server

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Champion:
    """One champion on this machine, ready to be published."""

    student: str
    files: DownloadedVersion
    onnx: tuple[Path, OnnxExport]

    @property
    def model(self) -> str:
        """Name of the registered model, and of the served one."""
        return str(self.files.metadata["model"])

    @property
    def version(self) -> int:
        """Number in the registry, and in Triton."""
        return int(self.files.metadata["version"])


def deploy_champions(config: DeploymentConfig, registration: Path, output: Path) -> dict[str, Any]:
    """Serve the champion of every registered student; write and return what ``deployment.json`` holds.

    Students without a champion are left out. Raises :class:`UserError` after the others are published, where one of
    them does not load or does not reproduce its golden images.
    """
    start = time.monotonic()
    champions = list(_champions(registration))
    if not champions:
        print(
            "deployment: no student is a champion yet, nothing is deployed; the report names the failed gates",
            flush=True,
        )
        return _record(output, {"schema": SCHEMA, "server": None, "models": {}, "query": None}, start)
    repository = model_repository(config)
    models: dict[str, Any] = {}
    problems: list[str] = []
    with repository.locked(), _server(config, repository) as (server, kept):
        control = server.control()
        clear_candidates(control, repository)
        with Progress("publishing", len(champions), "models") as progress:
            for champion in champions:
                try:
                    published = publish(
                        control,
                        repository,
                        champion.model,
                        champion.version,
                        champion.onnx,
                        GoldenCheck(champion.files.golden, config.tolerance),
                        serving_options(config),
                        config.keep_versions,
                        budget=latency_budget(config, champion),
                    )
                    models[champion.model] = _describe(champion, published) | _query(server, champion)
                except UserError as error:
                    problems.append(str(error))
                progress.advance(1, champion.model)
        document = {
            "schema": SCHEMA,
            "server": {
                "name": server.name,
                "url": server.url,
                "grpc": f"127.0.0.1:{server.grpc_port}",
                "metrics": server.metrics_url,
                "stays_up": kept,
                "log": server.log,
                "repository": str(repository.root),
            },
            "models": models,
            "query": _how_to_ask(server, kept, champions, models),
        }
        recorded = _record(output, document, start)
        if problems:
            raise UserError(f"not deployed, the versions served before stay: {' // '.join(problems)}")
    return recorded


def _champions(registration: Path) -> Iterator[Champion]:
    path = registration / "registration.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        students = {name: str(entry["model"]) for name, entry in document["students"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: cannot be read ({reason}); give the result of registration") from None
    registry = ModelRegistry(document.get("tracking_uri"))
    for student, model in sorted(students.items()):
        number = registry.champion(model)
        if number is None:
            print(f"deployment: {model} has no champion, it is not deployed", flush=True)
            continue
        files = download_version(model, number, default_destination(), registry=registry)
        yield Champion(student, files, to_onnx(files))


def to_onnx(files: DownloadedVersion) -> tuple[Path, OnnxExport]:
    """The ONNX export of a version, made once. Raises :class:`UserError` where it does not give what PyTorch gives."""
    print(f"deployment: {files.metadata['model']} version {files.metadata['version']} to ONNX", flush=True)
    return cached_export(files.export, home() / "cache" / "onnx")


def latency_budget(config: DeploymentConfig, champion: Champion) -> LatencyBudget | None:
    """The bound on the time of one image, where the settings have one."""
    return LatencyBudget(champion.files.golden, config.latency_budget_ms) if config.latency_budget_ms else None


def model_repository(config: DeploymentConfig) -> ModelRepository:
    """The folder that is served."""
    return ModelRepository(Path(config.repository or home() / "model_repository").expanduser())


def server_that_runs(config: DeploymentConfig, repository: ModelRepository) -> RunningServer | None:
    """The server of this name, or None. Raises :class:`UserError` where it serves another folder."""
    server = find_server(config.server)
    if server is not None and Path(server.repository) != repository.root:
        raise UserError(
            f"server '{server.name}' runs on {server.repository}, not on {repository.root}; stop it "
            "(python -m serving stop) or set deployment.server to another name"
        )
    return server


def start_with_models(config: DeploymentConfig, repository: ModelRepository) -> RunningServer:
    """Start the server and load what the repository serves. It follows this process until ``keep`` is called.

    Raises :class:`UserError` where it does not start.
    """
    ports = Ports(config.http_port, config.grpc_port, config.metrics_port)
    server = start_server(repository.root, config.server, ports=ports, timeout=config.start_timeout)
    try:
        for problem in load_models(server, repository):
            print(f"deployment: warning: {problem}", file=sys.stderr, flush=True)
    except BaseException:
        stop_server(config.server, drain=False)
        raise
    return server


@contextmanager
def _server(config: DeploymentConfig, repository: ModelRepository) -> Iterator[tuple[RunningServer, bool]]:
    """(the server to publish to, whether it stays up): one that runs already is used and left as it was found."""
    server = server_that_runs(config, repository)
    if server is not None:
        yield server, True
        return
    keep = config.serve == "keep"
    # It follows this process until the work is done: a killed deployment leaves no server behind.
    server = start_with_models(config, repository)
    try:
        yield server, keep
        if keep:
            server.keep()
    except BaseException:
        stop_server(config.server, drain=False)
        raise
    if not keep:
        stop_server(config.server, drain=False)


def serving_options(config: DeploymentConfig) -> ServingOptions:
    """How the models are served, as the settings say."""
    return ServingOptions(
        max_batch_size=config.max_batch_size,
        queue_delay_microseconds=config.queue_delay_microseconds,
        max_queue_size=config.max_queue_size,
        instances=config.instances,
        threads=config.threads,
        max_image_bytes=config.max_image_bytes,
        max_image_pixels=config.max_image_pixels,
        environment=serving_environment(),
    )


def _describe(champion: Champion, published: Published) -> dict[str, Any]:
    export = champion.onnx[1]
    return {
        "student": champion.student,
        "version": champion.version,
        "served": list(published.served),
        "served_before": list(published.before),
        "changed": published.changed,
        "run_id": champion.files.metadata.get("run_id"),
        "digest": champion.files.metadata["digest"],
        "served_digest": export.digest,
        "resolution": export.resolution,
        "dimension": export.dimension,
        "patches": export.patches,
        "golden": {
            "images": len(published.differences),
            "largest_difference": max(published.differences.values(), default=0.0),
            "differences": published.differences,
        },
        "seconds": published.seconds,
    }


def _query(server: RunningServer, champion: Champion) -> dict[str, Any]:
    """One real request as a client sends it, to the default version."""
    _, images, _ = read_golden(champion.files.golden)
    with EmbeddingClient(server.url, champion.model) as client:
        start = time.perf_counter()
        answer = client.embed(images[:1])
        seconds = time.perf_counter() - start
    if answer.version != champion.version or answer.digest != champion.onnx[1].digest:
        raise UserError(f"model '{champion.model}': version {answer.version} answers, expected {champion.version}")
    print(
        f"deployment: {champion.model} version {answer.version} answers with an embedding of "
        f"{answer.embedding.shape[1]} numbers in {1000 * seconds:.0f} ms",
        flush=True,
    )
    return {"query_seconds": round(seconds, 4)}


def _how_to_ask(
    server: RunningServer, stays_up: bool, champions: list[Champion], models: dict[str, Any]
) -> dict[str, Any] | None:
    """The exact commands that ask the first published model for the embedding of an image that is at hand."""
    champion = next((champion for champion in champions if champion.model in models), None)
    if champion is None:
        return None
    golden, _, _ = read_golden(champion.files.golden)
    image = champion.files.golden / golden.images[0].file
    given = os.environ.get("FOUNDRY_HOME")
    place = f"FOUNDRY_HOME={shlex.quote(given)} " if given else ""
    python = place + shlex.quote(_relative(Path(sys.executable)))
    name = "" if server.name == DEFAULT_NAME else f" --name {server.name}"
    elsewhere = Path(server.repository) != home() / "model_repository"
    repository = f" --repository {shlex.quote(server.repository)}" if elsewhere else ""
    return {
        "start": None if stays_up else f"{python} -m serving up{name}{repository}",
        "command": f"{python} -m serving embed{name} --model {champion.model} {shlex.quote(_relative(image))}",
        "stop": f"{python} -m serving stop{name}",
    }


def _relative(path: Path) -> str:
    """As typed in the checkout, where ``python -m serving`` is run."""
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else str(path)


def _record(output: Path, document: dict[str, Any], start: float) -> dict[str, Any]:
    document = {**document, "seconds": round(time.monotonic() - start, 3)}
    write_atomically(output / "deployment.json", json.dumps(document, indent=2) + "\n")
    return document
