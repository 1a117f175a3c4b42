"""A real MLflow server, for tests of what differs from the embedded database."""

import contextlib
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from foundry.lifetime import free_port


@pytest.fixture
def mlflow_server(tmp_path):
    """A tracking server on a free port that keeps files itself: (URI, function that stops its whole process tree)."""
    import psutil

    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "served"),
    ]  # fmt: skip
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)

    def stop():
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        server.wait(timeout=30)

    uri = f"http://127.0.0.1:{port}"
    try:
        assert _answers(uri, server), (tmp_path / "server.log").read_text()[-2000:]
        yield uri, stop
    finally:
        stop()


def _answers(uri, server):
    deadline, pause = time.monotonic() + 150, threading.Event()
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if urllib.request.urlopen(f"{uri}/health", timeout=2).status == 200:
                return True
        pause.wait(0.3)
    return False
