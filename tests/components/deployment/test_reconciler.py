"""The reconciler on the real registry and the real server: it follows, refuses, goes back, and survives any kill."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.deployment import reconciler as module
from components.deployment.audit import LAST_ACT, REFUSED, AuditLog
from components.deployment.config import DeploymentConfig
from components.deployment.observation import Observations
from components.deployment.reconciler import Reconciler
from components.registration.champions import default_destination, download_version
from components.registration.registry import ModelRegistry
from foundry.errors import UserError
from serving.client import EmbeddingClient
from serving.control import ServerControl
from serving.repository import ModelRepository
from serving.server import RunningServer, find_server
from tests.conftest import REPOSITORY
from tests.serving.tiny_models import encoded, picture

pytestmark = pytest.mark.slow
NAME = "deploy-vit"


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    return ModelRepository(tmp_path / "repository")


@pytest.fixture
def start(repository: ModelRepository, registry: ModelRegistry, session_home: Path) -> Iterator[Callable[..., Any]]:
    """``start(...)``: a new reconciler, as a new process has one. Tags, history and logs are taken away afterwards."""

    def start(**settings: Any) -> Reconciler:
        values = {"repository": str(repository.root), "threads": 1, "observe_seconds": 0, **settings}
        return Reconciler(DeploymentConfig(**values), "deploy", registry=registry)

    yield start
    for version in registry.versions(NAME):
        for tag in (LAST_ACT, REFUSED, "foundry.previous_champion"):
            if tag in version.tags:
                registry.client.delete_model_version_tag(NAME, version.version, tag)
    model = registry.model(NAME)
    for tag in model.tags:
        registry.client.delete_registered_model_tag(NAME, tag)
    with contextlib.suppress(Exception):
        registry.client.delete_registered_model_alias(NAME, "previous")
    for pattern in ("*.audit.jsonl", "*.observed"):
        for path in (session_home / "serving").glob(pattern):
            path.unlink()


def server() -> RunningServer:
    found = find_server()
    assert found is not None
    return found


def answer(version: int | None = None) -> int:
    with EmbeddingClient(server().url, NAME, version) as client:
        return client.embed([encoded(picture(3))]).version


def said(reconciler: Reconciler) -> list[tuple[str, int | None, str]]:
    return [(entry.what, entry.version, entry.outcome) for entry in reconciler.audit.entries(NAME)]


def test_the_endpoint_follows_promotion_and_rollback_within_seconds(
    start, registry, champions, repository, session_home, capsys
):  # type: ignore[no-untyped-def]
    registry.promote(NAME, "1", "the first")
    registry.client.set_registered_model_alias(NAME, "challenger", "2")  # made ready before it is promoted
    reconciler = start()
    wake, stop = threading.Event(), threading.Event()
    loop = threading.Thread(target=reconciler.watch, args=(600.0, wake, stop))
    loop.start()
    seconds = []
    try:

        def follows(version: int) -> float:
            begin = time.monotonic()
            while True:
                with contextlib.suppress(UserError, AssertionError):
                    if answer() == version:
                        return time.monotonic() - begin
                assert time.monotonic() < begin + 90

        follows(1)
        deadline = time.monotonic() + 120
        while len(list((session_home / "cache" / "onnx").glob("[!.]*"))) < 2:
            assert loop.is_alive() and time.monotonic() < deadline
            time.sleep(0.05)
        registry.promote(NAME, "2", "it sees more")
        wake.set()
        seconds.append(follows(2))
        assert answer(1) == 1, "the one before stays at hand"
        registry.rollback(NAME, "it was slow")
        wake.set()
        seconds.append(follows(1))
    finally:
        stop.set()
        wake.set()
        loop.join()
    with capsys.disabled():
        print(f"\nalias to answer: promotion {seconds[0]:.1f} s, rollback {seconds[1]:.1f} s")
    assert max(seconds) < 30
    assert repository.versions(NAME) == server().control().ready_versions(NAME) == [1]
    assert said(reconciler) == [
        (what, version, outcome)
        for what, version in (("publish", 1), ("publish", 2), ("roll back", 1))
        for outcome in ("started", "done")
    ]
    last = reconciler.audit.entries(NAME)[-1]
    assert (
        last.why == "champion moved (rollback): it was slow" and "server default" in last.who and last.when[:2] == "20"
    )
    tag = json.loads(registry.version(NAME, "1").tags[LAST_ACT])
    assert (tag["what"], tag["why"], tag["who"]) == ("roll back", last.why, last.who)
    assert start().run_once() == [] and said(reconciler)[-1] == ("roll back", 1, "done"), "nothing is due, nothing said"


@contextlib.contextmanager
def changed(path: Path, change: Callable[[bytes], bytes]) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(change(before))
    try:
        yield
    finally:
        path.write_bytes(before)


def weights_in_the_registry(registry: ModelRegistry, version: str) -> Path:
    """Where MLflow keeps the weights of a version."""
    uri = registry.client.get_model_version_download_uri(NAME, version)
    folder = Path(urllib.parse.urlsplit(uri).path)
    (path,) = folder.rglob("model.safetensors")
    return path


def drifted(recorded: bytes) -> bytes:
    import io

    array = np.load(io.BytesIO(recorded))
    array[0, 5] += 0.5
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("fault", ["damaged", "drifted", "slow"])
def test_a_bad_challenger_is_never_served_and_the_reason_is_kept(start, registry, champions, repository, fault):  # type: ignore[no-untyped-def]
    champions(vit="1")
    assert start().run_once() == []
    settings = {"latency_budget_ms": 0.001} if fault == "slow" else {}
    reconciler = start(**settings)
    files = download_version(NAME, "2", default_destination(), registry=registry)
    fault_place: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if fault == "damaged":
        shutil.rmtree(files.folder)
        fault_place = changed(weights_in_the_registry(registry, "2"), lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    elif fault == "drifted":
        fault_place = changed(files.golden / "embeddings.npy", drifted)
    loads = Path(server().log).read_text().count
    with fault_place:
        champions(vit="2")
        assert reconciler.run_once() == [], "it is no trouble of the reconciler's"
        assert answer() == 1 and repository.versions(NAME) == repository.served(NAME) == [1]
        assert repository.names() == [NAME]
        reason = {"damaged": "its files have digest", "drifted": "1 of 9 golden images", "slow": "too slow"}[fault]
        (refusal,) = [entry for entry in reconciler.audit.entries(NAME) if entry.what == "refuse"]
        assert refusal.version == 2 and reason in refusal.why
        kept = json.loads(registry.version(NAME, "2").tags[REFUSED])
        assert reason in kept["why"] and kept["digest"] == registry.version(NAME, "2").tags["foundry.export_digest"]
        before = loads("deploy-vit-candidate"), len(reconciler.audit.entries(NAME))
        assert reconciler.run_once() == [] and start(**settings).run_once() == []
        assert (loads("deploy-vit-candidate"), len(reconciler.audit.entries(NAME))) == before, "it is not tried again"
    champions(vit="1")  # away and back: a person wants it tried again
    assert reconciler.run_once() == []
    champions(vit="2")
    assert start().run_once() == []
    assert answer() == 2 and REFUSED not in registry.version(NAME, "2").tags


def model_processes(version: int) -> list[int]:
    """The processes of a version: its stubs have its model.py on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{NAME}/{version}/model.py".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def test_errors_after_the_switch_bring_the_version_before_back_everywhere(
    start, registry, champions, repository, tmp_path
):  # type: ignore[no-untyped-def]
    settings = {"observe_seconds": 600, "observe_requests": 10}
    registry.promote(NAME, "1", "the first")
    assert start(**settings).run_once() == []
    registry.promote(NAME, "2", "it sees more")
    reconciler = start(**settings)
    assert reconciler.run_once() == [] and answer() == 2
    processes = model_processes(2)
    assert processes
    for process in processes:
        os.kill(process, signal.SIGKILL)
    failed = 0
    for _ in range(20):
        try:
            answer()
        except UserError:
            failed += 1
    assert failed == 20
    reconciler = start(**settings)  # a restart in between forgets nothing
    assert reconciler.run_once() == []
    assert answer() == 1 and repository.served(NAME) == [1]
    assert ("refuse", 2, "refused") in said(reconciler) and said(reconciler)[-1] == ("roll back", 1, "done")
    why = json.loads(registry.version(NAME, "2").tags[REFUSED])["why"]
    assert "after the switch" in why and "0.0 % with version 1 before" in why
    assert registry.champion(NAME) == "2", "the registry's alias is the release owner's"
    # another replica, from nothing, comes to the same
    assert start(server="other", repository=str(tmp_path / "other")).run_once() == []
    second = find_server("other")
    assert second is not None and second.control().ready_versions(NAME) == [1]


def test_a_new_replica_comes_to_the_same_versions(start, registry, champions, repository, tmp_path):  # type: ignore[no-untyped-def]
    registry.promote(NAME, "1", "the first")
    assert start().run_once() == []
    registry.promote(NAME, "2", "it sees more")
    assert start().run_once() == []
    other = start(server="other", repository=str(tmp_path / "other"))
    assert other.run_once() == []
    second = find_server("other")
    assert second is not None
    assert second.control().ready_versions(NAME) == server().control().ready_versions(NAME) == [1, 2]
    assert [entry[:2] for entry in said(other)] == [("publish", 2)] * 2 + [("add beside", 1)] * 2
    registry.rollback(NAME, "no")
    assert start().run_once() == [] and other.run_once() == []
    assert second.control().ready_versions(NAME) == server().control().ready_versions(NAME) == [1]


class Killed(BaseException):
    """In place of SIGKILL: from then on nothing of that process has any effect, clean-up included."""


EFFECTS = [
    *((ModelRepository, name) for name in ("write_version", "serve", "restore", "remove", "touch")),
    *((ServerControl, name) for name in ("load", "unload")),
    *((module, name) for name in ("tag_last_act", "tag_refusal", "remove_refusal")),
    (AuditLog, "append"),
    (Observations, "_write"),
]


@contextlib.contextmanager
def killed_after(effects: int) -> Iterator[list[str]]:
    """Every act on the world counts; after so many of them there are no more. Yields the names of those done."""
    done: list[str] = []

    def counted(name: str, real: Any) -> Any:
        def act(*arguments: Any, **named: Any) -> Any:
            if len(done) >= effects:
                raise Killed
            result = real(*arguments, **named)
            done.append(name)
            if len(done) >= effects:
                raise Killed
            return result

        return act

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in EFFECTS:
            patch.setattr(owner, name, counted(name, getattr(owner, name)))
        with contextlib.suppress(Killed):
            yield done


def test_killed_after_any_effect_the_next_reconciler_converges(start, registry, champions, repository):  # type: ignore[no-untyped-def]
    settings = {"observe_seconds": 600}

    def move(target: int) -> None:
        if registry.champion(NAME) != str(target):
            registry.promote(NAME, "2", "up") if target == 2 else registry.rollback(NAME, "down")

    registry.promote(NAME, "1", "the first")
    assert start(**settings).run_once() == []
    for target, other in ((2, 1), (1, 2)):
        for effects in range(1, 40):
            move(target)
            with killed_after(effects) as done:
                assert start(**settings).run_once() == []
            standing = server().control().ready_versions(NAME)
            assert answer() == standing[-1], "one version answers, whatever was cut off"
            assert start(**settings).run_once() == []
            expected = [1, 2] if target == 2 else [1]
            assert answer() == target
            assert repository.served(NAME) == repository.versions(NAME) == expected
            assert server().control().ready_versions(NAME) == expected and repository.names() == [NAME]
            what, version, outcome = said(start())[-1]
            assert (version, outcome) == (target, "done"), f"killed after {done}, the log ends with {what}"
            if len(done) < effects:
                break
            move(other)
            assert start(**settings).run_once() == []
        else:
            pytest.fail("never ran to its end")
        assert effects > 6
        assert {"serve", "load", "append", "tag_last_act"} <= set(done)


def test_trouble_is_told_once_and_tried_again(start, registry, champions, capsys, monkeypatch):  # type: ignore[no-untyped-def]
    champions(vit="1")
    reconciler = start()
    assert reconciler.run_once() == []

    def away(*_: object) -> None:
        raise UserError("tracking URI http://registry: no MLflow server answers there")

    with monkeypatch.context() as patch:
        patch.setattr(module, "read_wanted", away)
        assert len(reconciler.run_once()) == len(reconciler.run_once()) > 0
        assert capsys.readouterr().err.count("no MLflow server answers") == len(reconciler.run_once())
        assert answer() == 1
    assert reconciler.run_once() == []
    assert [what for what, _, outcome in said(reconciler) if outcome == "failed"] == ["reconcile"]


def test_a_server_that_died_is_started_again_with_the_champion(start, registry, champions):  # type: ignore[no-untyped-def]
    from serving.server import stop_server

    champions(vit="1")
    reconciler = start()
    assert reconciler.run_once() == []
    stop_server(drain=False)
    assert reconciler.run_once() == [] and answer() == 1


def test_steady_load_during_promotion_and_rollback_loses_nothing(start, registry, champions, capsys):  # type: ignore[no-untyped-def]
    registry.promote(NAME, "1", "the first")
    assert start().run_once() == []
    registry.client.set_registered_model_alias(NAME, "challenger", "2")
    reconciler = start(observe_seconds=600, observe_requests=10)
    assert reconciler.run_once() == []
    answers: list[tuple[int, str]] = []
    failures: list[str] = []
    done = threading.Event()
    url, image = server().url, encoded(picture(3))

    def ask() -> None:
        with EmbeddingClient(url, NAME) as client:
            while not done.is_set():
                try:
                    found = client.embed([image])
                    answers.append((found.version, found.digest))
                except UserError as error:
                    failures.append(str(error))

    clients = [threading.Thread(target=ask) for _ in range(3)]
    for client in clients:
        client.start()
    seconds = []
    try:
        for _ in range(3):
            for move in (lambda: registry.promote(NAME, "2", "up"), lambda: registry.rollback(NAME, "down")):
                count = len(answers)
                while len(answers) < count + 20:
                    assert any(client.is_alive() for client in clients)
                    done.wait(0.01)
                move()
                begin = time.monotonic()
                assert reconciler.run_once() == []
                seconds.append(time.monotonic() - begin)
    finally:
        done.set()
        for client in clients:
            client.join()
    assert failures == []
    pairs = set(answers)
    assert {version for version, _ in pairs} == {1, 2} and len(pairs) == 2, "each version has one digest"
    with capsys.disabled():
        print(f"\n{len(answers)} requests in 3 promotions and 3 rollbacks, 0 failed; longest act {max(seconds):.1f} s")
    assert max(seconds) < 30
    assert not [entry for entry in reconciler.audit.entries(NAME) if entry.outcome in ("refused", "failed")]


def test_the_command_may_be_killed_and_the_server_goes_on(start, registry, champions, repository):  # type: ignore[no-untyped-def]
    champions(vit="1")
    program = [sys.executable, "-m", "components.deployment", "watch", "--every", "600", "--set"]
    program += [f"deployment.repository={repository.root}", "--set", "deployment.threads=1"]
    program += ["--set", "registration.prefix=deploy"]
    process = subprocess.Popen(program, cwd=REPOSITORY)
    try:
        deadline = time.monotonic() + 120
        while find_server() is None or not _settled(start()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.kill()
        process.wait()
        assert answer() == 1
    finally:
        process.kill()
        process.wait()
    stopped = subprocess.Popen(program, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert stopped.stdout is not None
    with stopped.stdout:
        assert "following the champions of 'deploy-*'" in stopped.stdout.readline()
        stopped.terminate()
        assert "the server goes on" in stopped.stdout.read()
    assert stopped.wait(timeout=60) == 0 and answer() == 1


def _settled(reconciler: Reconciler) -> bool:
    return said(reconciler)[-1:] == [("publish", 1, "done")]
