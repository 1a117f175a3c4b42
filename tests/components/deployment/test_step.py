"""Champions into service through the real registry and the real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.common.params import load_params
from components.deployment.config import DeploymentConfig
from components.deployment.step import STEP, run
from components.registration.champions import default_destination, download_version
from foundry.errors import UserError
from foundry.lifetime import is_alive
from serving.client import EmbeddingClient
from serving.repository import ModelRepository
from serving.server import RunningServer, find_server, start_server
from tests.conftest import REPOSITORY
from tests.serving.tiny_models import encoded, picture

IMAGES = 9


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    return ModelRepository(tmp_path / "repository")


@pytest.fixture
def deploy(registration: Path, repository: ModelRepository, tmp_path: Path):  # type: ignore[no-untyped-def]
    """``deploy(serve="keep", ...)`` runs the step; returns deployment.json."""
    count = 0

    def deploy(**settings: Any) -> dict[str, Any]:
        nonlocal count
        count += 1
        output = tmp_path / f"deployment-{count}"
        output.mkdir()
        config = DeploymentConfig(repository=str(repository.root), threads=1, **settings)
        result = run(config, {"registration": str(registration)}, output)
        document = json.loads((output / "deployment.json").read_text())
        assert document == result
        return document

    return deploy


def answer(server: RunningServer, model: str = "deploy-vit", version: int | None = None) -> tuple[int, np.ndarray]:
    with EmbeddingClient(server.url, model, version) as client:
        found = client.embed([encoded(picture(3))])
    return found.version, found.embedding


def test_champions_are_served_under_their_version_and_the_server_is_stopped(deploy, champions, repository, registry):  # type: ignore[no-untyped-def]
    champions(vit="2", convnext="1")
    document = deploy()
    assert {name: model["version"] for name, model in document["models"].items()} == {
        "deploy-convnext": 1,
        "deploy-vit": 2,
    }
    for name, model in document["models"].items():
        golden = model["golden"]
        assert len(golden["differences"]) == golden["images"] == IMAGES
        assert max(golden["differences"].values()) == golden["largest_difference"] <= 1e-4
        assert model["changed"] and model["served_before"] == []
        registered = registry.version(name, str(model["version"]))
        assert registered.run_id == model["run_id"]
        assert registered.tags["foundry.export_digest"] == model["digest"]
    assert repository.names() == ["deploy-convnext", "deploy-vit"], "no candidate is left"
    assert repository.served("deploy-vit") == repository.versions("deploy-vit") == [2]
    assert document["server"]["stays_up"] is False and find_server() is None


def test_the_printed_commands_work_as_they_stand(registration, champions, tmp_path):  # type: ignore[no-untyped-def]
    champions(vit="1")
    output = tmp_path / "output"
    output.mkdir()
    query = run(DeploymentConfig(threads=1), {"registration": str(registration)}, output)["query"]

    def shell(command: str) -> str:
        result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=REPOSITORY)
        assert result.returncode == 0, result.stderr
        return result.stdout

    environment = os.environ.pop("FOUNDRY_HOME")  # the commands name it themselves
    try:
        shell(query["start"])
        (row,) = json.loads(shell(query["command"]))
        assert (row["model"], row["version"], len(row["embedding"])) == ("deploy-vit", 1, 64)
        shell(query["stop"])
    finally:
        os.environ["FOUNDRY_HOME"] = environment
    assert find_server() is None


def test_new_champion_rollback_and_repetition_on_a_server_that_stays_up(deploy, champions, repository):  # type: ignore[no-untyped-def]
    champions(vit="1")
    assert deploy(serve="keep")["server"]["stays_up"] is True
    server = find_server()
    assert server is not None
    version, first = answer(server)
    assert version == 1

    champions(vit="2")
    document = deploy()
    assert document["models"]["deploy-vit"]["served"] == [1, 2] and document["server"]["url"] == server.url
    assert find_server() == server, "a server that ran before is left running"
    version, second = answer(server)
    assert version == 2 and np.abs(first - second).max() > 1e-2
    assert answer(server, version=1)[0] == 1

    def loads() -> int:
        return Path(server.log).read_text().count("TRITONBACKEND_ModelInstanceInitialize")

    before = loads()
    assert deploy()["models"]["deploy-vit"] | {"seconds": 0, "query_seconds": 0} == document["models"]["deploy-vit"] | {
        "changed": False,
        "served_before": [1, 2],
        "seconds": 0,
        "query_seconds": 0,
    }
    assert loads() == before, "a repeated deployment loads nothing"

    champions(vit="1")
    document = deploy()
    assert document["models"]["deploy-vit"]["served"] == repository.versions("deploy-vit") == [1]
    version, again = answer(server)
    assert version == 1
    np.testing.assert_allclose(again, first, atol=1e-6)
    with pytest.raises(UserError):
        answer(server, version=2)


def test_version_that_misses_one_golden_image_is_refused_and_the_old_one_serves(
    deploy, champions, repository, registry
):  # type: ignore[no-untyped-def]
    champions(vit="1", convnext="1")
    deploy(serve="keep")
    server = find_server()
    assert server is not None
    _, before = answer(server)
    config = repository.config("deploy-vit")
    golden = download_version("deploy-vit", "2", default_destination(), registry=registry).golden
    recorded = np.load(golden / "embeddings.npy")
    changed = recorded.copy()
    files = [image["file"] for image in json.loads((golden / "golden.json").read_text())["images"]]
    changed[files.index("images/variant-cmyk.jpg"), 5] += 0.5
    np.save(golden / "embeddings.npy", changed)
    try:
        champions(vit="2")
        with pytest.raises(UserError) as error:
            deploy()
    finally:
        np.save(golden / "embeddings.npy", recorded)
    message = str(error.value)
    assert "'deploy-vit-candidate' version 2: 1 of 9 golden images" in message
    assert "images/variant-cmyk.jpg differs by" in message and message.count("images/") == 1
    assert repository.config("deploy-vit") == config and repository.names() == ["deploy-convnext", "deploy-vit"]
    assert server.control().ready_versions("deploy-vit") == [1]
    assert server.control().ready_versions("deploy-vit-candidate") == []
    version, after = answer(server)
    assert version == 1
    np.testing.assert_allclose(after, before, atol=1e-6)
    assert deploy()["models"]["deploy-vit"]["served"] == [1, 2]


def test_without_a_champion_nothing_is_deployed_and_it_is_no_error(deploy, repository, capsys):  # type: ignore[no-untyped-def]
    document = deploy()
    assert document["models"] == {} and document["server"] is None and document["query"] is None
    assert "no student is a champion yet, nothing is deployed" in capsys.readouterr().out
    assert repository.names() == [] and find_server() is None


def test_killed_deployment_leaves_no_process_and_the_next_one_goes_through(  # type: ignore[no-untyped-def]
    deploy, champions, repository, registration, tmp_path
):
    champions(vit="1")
    output = tmp_path / "killed"
    output.mkdir()
    program = f"""
from pathlib import Path
from components.deployment.config import DeploymentConfig
from components.deployment.step import run
config = DeploymentConfig(serve="keep", threads=1, repository={str(repository.root)!r})
run(config, {{"registration": {str(registration)!r}}}, Path({str(output)!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (repository.names() and find_server()):  # the candidate is there, the server runs
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    server = find_server()
    assert server is not None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while is_alive(server.process) or is_alive(server.supervisor):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert list(Path("/dev/shm").glob(server.shared_memory_prefix + "*")) == []
    assert repository.served("deploy-vit") == []
    assert repository.names() == ["deploy-vit-candidate"]
    assert deploy()["models"]["deploy-vit"]["served"] == [1]
    assert repository.names() == ["deploy-vit"]


def test_model_whose_process_was_killed_is_loaded_again(deploy, champions):  # type: ignore[no-untyped-def]
    champions(vit="1")
    deploy(serve="keep")
    server = find_server()
    assert server is not None
    for task in Path(f"/proc/{server.process.partition(':')[0]}/task").iterdir():
        for child in (task / "children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
    with pytest.raises(UserError, match="not healthy"):
        answer(server)
    deploy()
    assert answer(server)[0] == 1


def test_what_is_no_registration_and_a_foreign_server_are_plain_errors(deploy, champions, registration, tmp_path):  # type: ignore[no-untyped-def]
    champions(vit="1")
    start_server(tmp_path / "other")
    with pytest.raises(UserError, match=r"server 'default' runs on .*other, not on .*repository; stop it"):
        deploy()
    for content in ("{", "[]", "{}", '{"students": [1]}'):
        (registration / "registration.json").write_text(content)
        with pytest.raises(UserError, match="give the result of registration"):
            deploy()


def test_settings_are_a_section_of_the_parameters() -> None:
    params = load_params(None, ["deployment.serve=keep", "deployment.http_port=8000"])
    assert (params.deployment.serve, params.deployment.http_port) == ("keep", 8000)
    with pytest.raises(
        UserError, match=r"unknown setting 'deployment\.http_prt'; did you mean 'deployment\.http_port'"
    ):
        load_params(None, ["deployment.http_prt=1"])
    assert not STEP.pure and [spec.name for spec in STEP.inputs] == ["registration"]
