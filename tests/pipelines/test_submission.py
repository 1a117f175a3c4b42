"""What `submit` sends, seen by a server that speaks as much of the KFP API as it needs (v2beta1)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


class Api(ThreadingHTTPServer):
    """Answers on a free loopback port and keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str, str, Any]] = []
        self.refuse = False


class Handler(BaseHTTPRequestHandler):
    server: Api

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _take(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.seen.append((self.command, self.path, self.headers.get("Authorization", ""), body))
        if self.path.endswith("/healthz"):
            self._answer(200, {"multi_user": False})
        elif self.server.refuse:
            self._answer(403, {"error": "no"})
        elif "/experiments" in self.path:
            experiment = {"experiment_id": "e1", "display_name": "dino-foundry"}
            self._answer(200, experiment if self.command == "POST" else {"experiments": [experiment]})
        else:
            self._answer(200, {"run_id": "r1", "experiment_id": "e1", "display_name": "a run"})

    do_GET = do_POST = _take

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def submit(api: Api, *arguments: str) -> subprocess.CompletedProcess[str]:
    host = f"http://127.0.0.1:{api.server_port}"
    return subprocess.run(
        [sys.executable, "-m", "pipelines", "submit", "--host", host, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "KFP_TOKEN": "a-token", "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
    )


def test_a_run_is_created_with_the_settings_and_the_token(api: Api) -> None:
    done = submit(
        api,
        "--images",
        "s3://bucket/images",
        "--set",
        "curation.seed=7",
        "--run-name",
        "mine",
        "--image",
        "reg/python:1",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"http://127.0.0.1:{api.server_port}/#/runs/details/r1"
    assert {token for _, _, token, _ in api.seen} == {"Bearer a-token"}
    (run,) = (body for method, path, _, body in api.seen if method == "POST" and path.endswith("/runs"))
    assert run["display_name"] == "mine"
    spec = run["pipeline_spec"]["pipeline_spec"]
    defaults = {name: row["defaultValue"] for name, row in spec["root"]["inputDefinitions"]["parameters"].items()}
    assert defaults["images"] == "s3://bucket/images" and defaults["curation"]["seed"] == 7
    assert {row["container"]["image"] for row in spec["deploymentSpec"]["executors"].values()} == {"reg/python:1"}
    assert run["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]


def test_a_refusal_is_one_line(api: Api) -> None:
    api.refuse = True
    done = submit(api)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "refused: 403" in done.stderr
