"""Starting and ending the real server: one plain line when it does not start, no process left when it is over."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import serving.installation
from foundry.errors import UserError
from foundry.lifetime import free_port, is_alive
from serving.installation import find_installation, install_triton, triton_folder
from serving.model_config import ServingOptions
from serving.repository import ModelRepository
from serving.server import (
    Ports,
    RunningServer,
    find_server,
    load_models,
    running_servers,
    start_server,
    stop_server,
)
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.usefixtures("needs_triton")


@pytest.fixture
def repository(fresh_home: Path, tmp_path: Path) -> Iterator[ModelRepository]:
    yield ModelRepository(tmp_path / "repository")
    for server in running_servers():
        stop_server(server.name, drain=False)


def traces(server: RunningServer) -> list[str]:
    """What is left of a server: its processes, its children's, its regions of shared memory."""
    group = server.process.partition(":")[0]
    found = [identity for identity in (server.supervisor, server.process) if is_alive(identity)]
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = path.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if process_group == group and state != "Z":
            found.append(str(path))
    return found + [str(path) for path in Path("/dev/shm").glob(server.shared_memory_prefix + "*")]


def model_processes(server: RunningServer) -> list[int]:
    tasks = Path(f"/proc/{server.process.partition(':')[0]}/task").iterdir()
    found = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    assert found
    return found


def wait_until(condition, seconds: float = 20.0) -> bool:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def add_model(repository: ModelRepository, onnx) -> None:  # type: ignore[no-untyped-def]
    repository.write_version("vit", 1, *onnx["vit"])
    repository.serve("vit", [1], ServingOptions(environment=find_installation().environment, threads=1))


def test_start_find_stop(repository: ModelRepository, onnx, fresh_home: Path) -> None:  # type: ignore[no-untyped-def]
    add_model(repository, onnx)
    server = start_server(repository.root)
    state = fresh_home / "serving" / "default.json"
    assert find_server() == server
    assert stat.S_IMODE(state.stat().st_mode) == 0o600 and server.admin_key in state.read_text()
    assert load_models(server, repository) == []
    assert server.control().is_ready("vit", 1) and not server.control().is_ready("vit", 2)
    assert len(traces(server)) >= 5, "supervisor, server, stub, shared memory"
    with pytest.raises(UserError, match=rf"server 'default' runs already at {server.url}"):
        start_server(repository.root)
    assert find_server() == server
    assert stop_server()
    assert traces(server) == [] and not state.exists() and find_server() is None
    assert not stop_server()
    # The ports are free again.
    again = start_server(repository.root, ports=Ports(server.http_port, server.grpc_port, server.metrics_port))
    assert again.url == server.url


@pytest.mark.parametrize("which", ["http", "grpc", "metrics"])
def test_port_in_use_is_one_plain_line(repository: ModelRepository, which: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"{which} port {port} on 127.0.0.1 is in use; choose another"):
            start_server(repository.root, ports=Ports(**{which: port}))
    assert running_servers() == []


def test_server_that_does_not_start_shows_its_own_last_lines(repository: ModelRepository) -> None:
    port = free_port()
    with pytest.raises(
        UserError, match=r"Triton did not start; its last lines: .*at the same address and port.*default\.log\)"
    ):
        start_server(repository.root, ports=Ports(http=port, grpc=port))
    assert running_servers() == []


def test_server_that_is_not_ready_in_time_is_ended(repository: ModelRepository, fresh_home: Path) -> None:
    with pytest.raises(UserError, match="Triton is not ready after 0 s"):
        start_server(repository.root, timeout=0.0)
    assert running_servers() == []
    assert not (fresh_home / "serving" / "default.json").exists()


STARTER = """
import sys
from pathlib import Path
from serving.repository import ModelRepository
from serving.server import load_models, start_server
repository = ModelRepository(Path(sys.argv[1]))
server = start_server(repository.root)
load_models(server, repository)
if sys.argv[2] == "keep":
    server.keep()
print(server.url, flush=True)
sys.stdin.read()
"""


def starter(repository: ModelRepository, mode: str) -> tuple[subprocess.Popen[str], RunningServer]:
    """Another process that has started the server (with its model loaded) and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(repository.root), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        start_new_session=True,
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    server = find_server()
    assert server is not None and server.url == url and server.control().is_ready("vit")
    return process, server


def test_killed_starter_takes_the_server_with_it(repository: ModelRepository, onnx) -> None:  # type: ignore[no-untyped-def]
    add_model(repository, onnx)
    process, server = starter(repository, "follow")
    assert len(traces(server)) >= 5
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert wait_until(lambda: traces(server) == []), traces(server)
    assert find_server() is None


def test_kept_server_outlives_its_killed_starter(repository: ModelRepository, onnx) -> None:  # type: ignore[no-untyped-def]
    add_model(repository, onnx)
    process, server = starter(repository, "keep")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    # Longer than the supervisor looks after the process it followed.
    assert not wait_until(lambda: not is_alive(server.process), seconds=0.7)
    assert find_server() == server and server.control().is_ready("vit")
    assert stop_server()
    assert traces(server) == []


@pytest.mark.parametrize("victim", ["process", "supervisor"])
def test_killed_server_or_supervisor_leaves_nothing(repository: ModelRepository, onnx, victim: str) -> None:  # type: ignore[no-untyped-def]
    add_model(repository, onnx)
    server = start_server(repository.root)
    assert load_models(server, repository) == []
    os.kill(int(getattr(server, victim).partition(":")[0]), signal.SIGKILL)
    assert wait_until(lambda: find_server() is None)
    assert wait_until(lambda: traces(server) == []), traces(server)
    assert start_server(repository.root).name == server.name


def test_killed_model_process_is_an_error_for_clients_and_stop_leaves_nothing(
    repository: ModelRepository, onnx
) -> None:  # type: ignore[no-untyped-def]
    """Triton 2.51 does not start a killed model process again (docs/serving.md); loading anew does."""
    from serving.client import EmbeddingClient
    from tests.serving.tiny_models import encoded, picture

    add_model(repository, onnx)
    server = start_server(repository.root)
    assert load_models(server, repository) == []
    for pid in model_processes(server):
        os.kill(pid, signal.SIGKILL)
    with EmbeddingClient(server.url, "vit") as client:
        with pytest.raises(UserError, match="Stub process 'vit_0_0' is not healthy"):
            client.embed([encoded(picture(1))])
        repository.touch("vit", 1)
        server.control().load("vit")
        assert client.embed([encoded(picture(1))]).version == 1
    assert stop_server(drain=False)
    assert traces(server) == []


def test_model_that_does_not_load_is_reported_and_the_others_serve(repository: ModelRepository, onnx) -> None:  # type: ignore[no-untyped-def]
    add_model(repository, onnx)
    repository.write_version("broken", 1, *onnx["convnext"])
    graph = repository.root / "broken" / "1" / "model.onnx"
    graph.unlink()  # a hard link
    graph.write_bytes(b"junk")
    repository.serve("broken", [1], ServingOptions(environment=find_installation().environment))
    server = start_server(repository.root)
    (problem,) = load_models(server, repository)
    assert (
        problem.startswith("model 'broken' does not load: ") and "INVALID_PROTOBUF" in problem and "\n" not in problem
    )
    assert server.control().is_ready("vit")
    assert urllib.request.urlopen(f"{server.url}/v2/health/ready").status == 200


def test_unusable_installations_name_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed = triton_folder()
    environment = find_installation().environment
    monkeypatch.setenv("FOUNDRY_TRITON", str(tmp_path))
    with pytest.raises(UserError, match="the Triton server is not there; run: python -m serving install"):
        find_installation()
    monkeypatch.setenv("FOUNDRY_TRITON", str(installed))
    monkeypatch.setenv("FOUNDRY_SERVING_ENV", str(tmp_path))
    with pytest.raises(UserError, match="no serving environment there"):
        find_installation()
    monkeypatch.setenv("FOUNDRY_SERVING_ENV", str(environment))
    versions = {"numpy": "2.4.6", "pillow": "13.0.0", "onnxruntime": "1.31.1"}
    for change, message in [
        ({}, "answers with empty tensors under numpy 2.4.6"),
        ({"numpy": "1.26.4", "onnxruntime": ""}, "the package onnxruntime is missing"),
    ]:
        answer = ("3.11", "/lib", *(versions | change).values())
        monkeypatch.setattr(serving.installation, "_ask", lambda *_, answer=answer: answer)
        with pytest.raises(UserError, match=message):
            find_installation()
    monkeypatch.setattr(serving.installation, "_ask", lambda *_: ("3.11", "", "1.26.4", "13", "1"))
    with pytest.raises(UserError, match=r"no libpython3\.11\.so\.1\.0"):
        find_installation()
    monkeypatch.setattr(serving.installation, "_ask", lambda *_: ("3.99", "/lib", "1.26.4", "13", "1"))
    with pytest.raises(UserError, match="Python 3.99: this Triton server has no stub for it"):
        find_installation()


def test_install_does_nothing_where_the_server_is_and_touches_nothing_foreign(tmp_path: Path) -> None:
    binary = find_installation().binary
    before = binary.stat().st_mtime_ns
    assert install_triton() == triton_folder()
    assert binary.stat().st_mtime_ns == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no Triton server"):
        install_triton(tmp_path)
    assert json.dumps([path.name for path in tmp_path.iterdir()]) == '["mine.txt"]'
