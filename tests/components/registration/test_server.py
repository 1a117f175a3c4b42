"""The registry as on a cluster: an MLflow server with PostgreSQL behind it and files in an S3 store (moto)."""

import contextlib
import getpass
import glob
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from components.registration.champions import download_version, folder_digest
from components.registration.commands import run_registry_command
from components.registration.config import RegistrationConfig
from components.registration.registry import ModelRegistry
from components.registration.report import read_verdicts
from foundry.lifetime import free_port

pytestmark = pytest.mark.slow
BUCKET = "models"
SECRETS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def wait_for(answers, process, log, seconds=150):
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            if answers():
                return
        pause.wait(0.3)
    pytest.fail(f"did not start: {log.read_text(errors='replace')[-2000:]}")


@contextlib.contextmanager
def running(command, log, answers, stop=signal.SIGKILL, **options):
    """``command`` while it answers; afterwards it and its children are stopped, by their process ids."""
    import psutil

    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, **options)
    try:
        wait_for(answers, process, log)
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            children = [] if stop != signal.SIGKILL else parent.children(recursive=True)
            for each in [parent, *children]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.send_signal(stop)
        process.wait(timeout=60)


@contextlib.contextmanager
def postgres(log):
    """A cluster of its own on a free port; yields the address of its database ``mlflow``."""
    import psycopg2

    (binaries,) = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1:]
    user = getpass.getuser()
    options = {}
    if os.geteuid() == 0:  # which initdb refuses
        user = "postgres"
        options = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="foundry-postgres-", dir="/tmp"))  # where that user may enter
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, user)
        data, port = folder / "data", free_port()
        subprocess.run(
            [f"{binaries}/initdb", "-D", str(data), "-A", "trust", "-U", "mlflow", "--no-sync"],
            check=True, capture_output=True, cwd="/", **options,
        )  # fmt: skip
        address = {"host": "127.0.0.1", "port": port, "user": "mlflow", "dbname": "postgres", "connect_timeout": 2}
        command = [
            f"{binaries}/postgres", "-D", str(data), "-k", str(folder), "-p", str(port),
            "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off",
        ]  # fmt: skip

        def answers():
            psycopg2.connect(**address).close()
            return True

        with running(command, log, answers, stop=signal.SIGINT, cwd="/", **options):
            connection = psycopg2.connect(**address)
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("create database mlflow")
            connection.close()
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/mlflow"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster_server(tmp_path):
    """(URI of the MLflow server, boto3 client of its store, address of its database)."""
    for package in ("psycopg2", "boto3", "moto", "flask"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the Python package {package} is missing")
    if not glob.glob("/usr/lib/postgresql/*/bin/initdb"):
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    if os.geteuid() == 0 and "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    import boto3

    port, s3_port = free_port(), free_port()
    endpoint, uri = f"http://127.0.0.1:{s3_port}", f"http://127.0.0.1:{port}"
    environment = {
        **os.environ, **SECRETS, "MLFLOW_S3_ENDPOINT_URL": endpoint, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }  # fmt: skip
    store = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )

    def store_answers():
        store.create_bucket(Bucket=BUCKET)
        return True

    def server_answers():
        return urllib.request.urlopen(f"{uri}/health", timeout=2).status == 200

    moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3_port)]
    with (
        postgres(tmp_path / "postgres.log") as database,
        running(moto, tmp_path / "moto.log", store_answers, env=environment),
    ):
        server = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", database, "--artifacts-destination", f"s3://{BUCKET}/artifacts",
        ]  # fmt: skip
        with running(server, tmp_path / "server.log", server_answers, cwd=tmp_path, env=environment):
            yield uri, store, database


def aliases(registry, name):
    return {alias: str(number) for alias, number in registry.model(name).aliases.items()}


def test_champions_on_a_server(cluster_server, line, register, fresh_home, tmp_path, monkeypatch, capfd):
    uri, store, database = cluster_server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    config, only, name = RegistrationConfig(), {"students": ("vit",)}, "dino-foundry-vit"
    lines = {"1": line.inputs(seed=1, **only), "2": line.inputs(seed=2, failed=("vit",), **only)}
    rows = {number: register(config, inputs, tmp_path / number)[0]["vit"] for number, inputs in lines.items()}
    assert [(rows[key]["version"], rows[key]["champion"], rows[key]["verdict"]) for key in ("1", "2")] == [
        ("1", "1", "passed"), ("2", "1", "failed"),
    ]  # fmt: skip
    registry = ModelRegistry()
    assert aliases(registry, name) == {"champion": "1", "challenger": "2"}

    (reason,) = read_verdicts(Path(lines["2"]["report"]))["vit"].reasons
    capfd.readouterr()
    assert run_registry_command(["promote", name, "challenger"]) == 2
    refused = capfd.readouterr().err
    assert reason in refused and len(refused.splitlines()) == 1 and registry.champion(name) == "1"
    assert run_registry_command(["promote", name, "challenger", "--anyway", "--why", "a trial"]) == 0
    assert aliases(registry, name) == {"champion": "2", "challenger": "2", "previous": "1"}
    for number, alias in (("2", "champion"), ("1", "previous")):
        version = download_version(name, alias, tmp_path / "files")
        assert version.metadata["version"] == number
        assert version.metadata["digest"] == rows[number]["digest"] == folder_digest(version.export)
    assert run_registry_command(["rollback", name, "--why", "the trial is over"]) == 0
    assert aliases(registry, name) == {"champion": "1", "challenger": "2"}
    moves = [(move.action, move.version, move.overruled) for move in registry.history(name)]
    assert moves == [("verdict", "1", ""), ("promote", "2", reason), ("rollback", "1", "")]
    capfd.readouterr()
    assert run_registry_command(["history", name]) == 0
    shown = capfd.readouterr().out
    assert "promote --anyway" in shown and "the trial is over" in shown and reason in shown

    # The files lie in the store, the aliases in the database, and nothing on this side.
    found = store.list_objects_v2(Bucket=BUCKET, Prefix="artifacts/").get("Contents", [])
    weights = [row["Key"] for row in found if row["Key"].endswith("export/model.safetensors")]
    assert len(weights) == 2
    body = store.get_object(Bucket=BUCKET, Key=weights[0])["Body"].read()
    exports = [Path(inputs["students"], "students/vit/export/step-000000010") for inputs in lines.values()]
    assert body in [(export / "model.safetensors").read_bytes() for export in exports]
    assert rows_of(database) == {("champion", 1), ("challenger", 2)}
    assert not list((fresh_home / "mlflow").glob("*.db"))


def rows_of(database):
    import psycopg2

    connection = psycopg2.connect(database.replace("postgresql+psycopg2", "postgresql"))
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute("select alias, version from registered_model_aliases")
        return set(cursor.fetchall())
